// What processes outside of a tree have open. Of a tree that still runs tasks come and go, and close what was just
// seen.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/procfs.h"
#include "core/files/open_file.h"

namespace migrate {

class RunningTree {
 public:
  explicit RunningTree(const std::vector<ProcDir>& tasks);
  explicit RunningTree(std::set<pid_t> pids) : pids_(std::move(pids)) {}
  bool has(pid_t pid) const { return pids_.contains(pid); }
  /// Children that came since the tree was listed belong to it.
  bool inside(pid_t pid) const;
  /// "process 42 (cat)", if a process outside of the tree has a descriptor with that link. Reads all of /proc.
  std::optional<std::string> outside_holder(const std::string& link) const;
  /// The same of a file that may have other paths elsewhere, open for writing.
  std::optional<std::string> outside_writer(const InodeKey& file) const;
  /// Calls `look` for each descriptor of processes outside of the tree that can be seen. What it cannot see, it leaves.
  using Look = std::function<void(const ProcDir& task, int fd, const std::string& link)>;
  void look_outside(const Look& look) const;

 private:
  using Match = std::function<bool(const ProcDir&, const std::string& number)>;
  std::optional<std::string> outside(const Match& match) const;
  std::set<pid_t> pids_;
};

}  // namespace migrate
