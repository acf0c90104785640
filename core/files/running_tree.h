// A tree that still runs, as preflight asks of it: tasks come and go, and close what was just seen.
#pragma once

#include <sys/types.h>

#include <functional>
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
  /// Calls `look` for each descriptor of processes outside of the tree that can be seen. What it cannot see, it leaves.
  using Look = std::function<void(const ProcDir& task, int fd, const std::string& link)>;
  void look_outside(const Look& look) const;
  bool inside(pid_t pid) const;

 private:
  std::set<pid_t> pids_;
};

}  // namespace migrate
