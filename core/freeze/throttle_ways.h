// The ways of slowing a tree down, and what they share. Used by cpu_throttle.cpp and the tests.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "core/base/error.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/freeze/cpu_throttle.h"
#include "core/freeze/throttle_keeper.h"

namespace migrate {

/// Each throws Refusal if this way does not exist here. `name` is the whole name of cgroups that are made.
std::unique_ptr<Throttle> throttle_v1(Pid root, const std::string& name);
std::unique_ptr<Throttle> throttle_v2(Pid root);
std::unique_ptr<Throttle> throttle_pauses(Pid root, const std::string& name);

/// throttle_v2() once the cgroup is known. Refusal if it holds tasks outside of the tree, or cannot limit CPU time.
std::unique_ptr<Throttle> throttle_v2_in(Pid root, const std::string& folder);

/// One write(2), as cgroup files want it. Returns 0 or the errno; demand_write throws.
int write_cgroup_file(const std::string& path, const std::string& text);
void demand_write_cgroup_file(const std::string& path, const std::string& text);
/// The pids in a cgroup.procs; those outside of our pid namespace are not there.
std::set<pid_t> pids_in(const std::string& path);
/// Moves what is in `folder` to its parent and removes it; no effect if it is gone.
void remove_cgroup(const std::string& folder);
std::string parent_cgroup(const std::string& folder);
std::string cgroup_name(const std::string& folder);

}  // namespace migrate
