// Entry points of the session layer. Each returns the exit code of the command:
//   0 moved (resolve: nothing is in doubt)   1 failed, the source runs on here
//   2 wrong usage, or refused before anything was touched   3 in doubt, see `migrate resolve`
// Failures are reported through the event sink (standard error, or JSON lines on standard output), not thrown.
#pragma once

#include <string>
#include <vector>

#include "core/base/log.h"
#include "migrate/session/base/options.h"

namespace migrate {

enum ExitCode { kMoved = 0, kFailed = 1, kRefused = 2, kInDoubt = 3 };

/// `migrate send`. Handles SIGINT, SIGTERM and SIGHUP itself: before commit the source runs on, after it they wait.
int run_send(const SendOptions& options, Logger& log);
/// `migrate receive`. SIGINT, SIGTERM and SIGHUP end it between sessions, and abort a session that is not prepared yet.
int run_receive(const ReceiveOptions& options, Logger& log);
/// `migrate resolve [SESSION]`.
int run_resolve(const ResolveOptions& options, Logger& log);
/// The hidden verbs `guardian-source FD`, `guardian-destination FD` and `guardian-watch …`: the program is executed
/// again, so that a guardian is a fresh, single-threaded process.
int run_guardian(int argc, char** argv);

}  // namespace migrate
