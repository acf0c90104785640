// The low-level verbs, one function each: 0 on success, else the exit code. Failures are exceptions.
#pragma once

#include "migrate/cli/core_options.h"

namespace migrate::cli {

int run_dump(const CoreOptions& options);
int run_restore(const CoreOptions& options);
int run_check(const CoreOptions& options);

}  // namespace migrate::cli
