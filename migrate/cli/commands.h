// The low-level verbs, one function each: 0 on success, else the exit code. Failures are exceptions.
#pragma once

#include "migrate/cli/core_options.h"

namespace migrate::cli {

int run_dump(const CoreOptions& options);
int run_restore(const CoreOptions& options);
int run_check(const CoreOptions& options);
int run_pre_dump(const CoreOptions& options);
int run_page_server(const CoreOptions& options);
int run_untrack(const CoreOptions& options);
/// What a pre-dump leaves behind (track_keeper.h): {program, "track-keeper", pid, seconds}; its socket is descriptor 3.
int run_track_keeper(char** argv);

}  // namespace migrate::cli
