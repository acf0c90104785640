// The watch: a third small process, for the moment in which agent and guardian are killed together. It sleeps until
// both are gone, then settles what needs no word of the other side (settle_session), and ends. It never acts while one
// of them lives, and takes the journal's lock like everybody else.
#pragma once

#include <string>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// The agent's end: the session counts as left by its agent when this is destroyed or the agent dies.
class SessionWatch {
 public:
  /// Starts the watch, as nobody's child. `guardian`: a pidfd. Throws Error.
  SessionWatch(const std::string& state_dir, const SessionId& id, Role role, int guardian);

 private:
  Fd left_;  ///< write end of a pipe
};

/// The verb `guardian-watch ROLE STATE_DIR SESSION`: descriptor 3 is the pipe's read end, 4 the guardian's pidfd.
int run_watch(int argc, char** argv, Logger& log);

}  // namespace migrate
