// The watch: a third small process, for sessions that agent and guardian left, be it that they were killed, or that the
// other side could not be asked. It sleeps until both are gone; then it settles what needs no word of the other side
// (settle_session), and, at the source, asks the destination about a committed session and tells it of an abort, again
// and again with growing pauses, until that is done or somebody else has done it (`migrate resolve`, say). It never
// acts while one of the two lives, and takes the journal's lock like everybody else.
#pragma once

#include <functional>
#include <string>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "core/base/log.h"
#include "migrate/session/base/options.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// The agent's end: the session counts as left by its agent when this is destroyed or the agent dies.
class SessionWatch {
 public:
  /// Starts the watch, as nobody's child. `guardian`: a pidfd. `link`: at the source, how to ask the destination.
  /// Throws Error.
  SessionWatch(const std::string& state_dir, const SessionId& id, Role role, int guardian,
               const LinkOptions& link = {});

 private:
  Fd left_;  ///< write end of a pipe
};

/// How long a watch tries.
struct WatchTimes {
  std::chrono::milliseconds first{1'000}, longest{60'000};  ///< between two attempts: doubled each time
  /// For telling an abort: the tree runs, so a destination that never comes back costs a sleeping process only this
  /// long. A committed session is asked about without end, since its tree stands still.
  std::chrono::milliseconds telling{std::chrono::hours(24)};
};

/// Settles a session that nobody holds any more. `asker`: how to ask the destination, given its address.
void settle_until_done(JournalStore& store, TreeKeeper& keeper, const SessionId& id, Role role, Timeouts timeouts,
                       const std::function<AskDestination(const std::string&)>& asker, const WatchTimes& times,
                       Events& events, Logger& log);

/// The verb `guardian-watch ROLE STATE_DIR SESSION [WORD...]`: descriptor 3 is the pipe's read end, 4 the guardian's
/// pidfd; the words are words_of() the connection.
int run_watch(int argc, char** argv, Logger& log);

}  // namespace migrate
