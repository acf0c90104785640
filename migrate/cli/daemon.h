// What the verbs that serve others have in common: pidfile, status descriptor, going on in the background.
#pragma once

#include <sys/types.h>

#include "core/base/log.h"
#include "migrate/cli/core_options.h"

namespace migrate::cli {

/// Into --pidfile, if it is given.
void write_pidfile(const CoreOptions& options, pid_t pid);
/// A NUL byte into --status-fd, if it is given.
void tell_status(const CoreOptions& options);
/// Call once we listen: tells --pidfile and --status-fd. With --daemon a child goes on in the background, in a session
/// of its own and without standard descriptors; in the parent the result is true.
bool begin_serving(const CoreOptions& options, Logger& log);

}  // namespace migrate::cli
