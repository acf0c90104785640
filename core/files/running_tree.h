// A tree that still runs, as preflight asks of it: tasks come and go, and close what was just seen.
#pragma once

#include <sys/types.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/procfs.h"

namespace migrate {

class RunningTree {
 public:
  explicit RunningTree(const std::vector<ProcDir>& tasks);
  bool has(pid_t pid) const { return pids_.contains(pid); }
  /// "process 42 (cat)", if a process outside of the tree has a descriptor with that link. Reads all of /proc.
  std::optional<std::string> outside_holder(const std::string& link) const;

 private:
  bool inside(pid_t pid) const;
  std::set<pid_t> pids_;
};

}  // namespace migrate
