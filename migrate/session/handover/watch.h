// The watch: a third small process, for sessions that agent and guardian left, be it that they were killed, or that the
// other side could not be asked. It sleeps until both are gone; then it settles what needs no word of the other side
// (settle_session), and, at the source, asks the destination about a committed session and tells it of an abort, again
// and again with growing pauses, until that is done or somebody else has done it (`migrate resolve`, say). It never
// acts while one of the two lives, and takes the journal's lock like everybody else.
#pragma once

#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "migrate/session/base/options.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// The agent's end: the session counts as left by its agent when this is destroyed or the agent dies.
class SessionWatch {
 public:
  /// Starts the watch, as nobody's child. `guardian`: a pidfd. `link`: at the source, how to ask the destination.
  /// Throws Error.
  SessionWatch(const std::string& state_dir, const SessionId& id, Role role, int guardian,
               const LinkOptions& link = {});
  /// `link` as words_of() gives it.
  SessionWatch(const std::string& state_dir, const SessionId& id, Role role, int guardian,
               const std::vector<std::string>& link);

 private:
  Fd left_;  ///< write end of a pipe
};

/// The verb `guardian-watch ROLE STATE_DIR SESSION [WORD...]`: descriptor 3 is the pipe's read end, 4 the guardian's
/// pidfd; the words are words_of() the connection.
int run_watch(int argc, char** argv, Logger& log);

}  // namespace migrate
