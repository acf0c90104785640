// The low-level verbs, one function each: 0 on success, else the exit code. Failures are exceptions.
#pragma once

#include "migrate/cli/core_options.h"
#include "migrate/session/base/options.h"

namespace migrate::cli {

int run_dump(const CoreOptions& options);
int run_restore(const CoreOptions& options);
int run_pre_dump(const CoreOptions& options);
int run_page_server(const CoreOptions& options);
int run_lazy_pages(const CoreOptions& options);
int run_untrack(const CoreOptions& options);

struct CheckOptions {
  std::string feature;  ///< just this one
  std::string peer;     ///< HOST:PORT of a receiver to look at instead; empty: this host
  LinkOptions link;
  bool keys_named = false;  ///< the user says where the keys are: then they must be there
  bool json = false;
};
/// 0 if all that is required is there.
int run_check(const CheckOptions& options);
/// What a pre-dump leaves behind (track_keeper.h): {program, "track-keeper", pid, seconds}; its socket is descriptor 3.
int run_track_keeper(char** argv);

}  // namespace migrate::cli
