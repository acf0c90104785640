// The cgroup that an operator names for programs that are made here.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace migrate {

struct NamedCgroup {
  std::vector<std::string> folders;  ///< of the hierarchies that have it
  std::vector<std::string> without;  ///< mount points of those that have not
};

/// `path` as /proc/PID/cgroup shows it, seen from where the hierarchies are mounted. Refusal where no hierarchy has it;
/// and where it, or a cgroup above it, may be changed by a user who could then stop and kill programs that are not
/// his: `users` are those whose programs alone are put there, empty: anybody's.
NamedCgroup find_named_cgroup(const std::string& path, const std::vector<uid_t>& users);

/// Refusal if no process can be put there, with the kernel's reason (v2: cgroups with controllers for those below them,
/// and threaded ones). One of ours goes there, and ends.
void try_named_cgroup(const NamedCgroup& cgroup);

}  // namespace migrate
