// One authenticated connection, in a process of its own: the greeting, then a question about a session, or a migration.
#pragma once

#include <memory>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "migrate/session/base/options.h"
#include "migrate/session/wire/connector.h"
#include "pageserver/stream.h"

namespace migrate {

/// What the process's exit code says besides ExitCode: it was no migration.
inline constexpr int kQuestionAnswered = 10;

/// Serves it to its end. Failures are events. `link`: to the daemon (daemon_link.h).
int serve_connection(const ReceiveOptions& options, const Connector& connector, std::unique_ptr<Stream> stream, Fd link,
                     Logger& log);

}  // namespace migrate
