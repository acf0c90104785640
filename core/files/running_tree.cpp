#include "core/files/running_tree.h"

#include <unistd.h>

namespace migrate {

RunningTree::RunningTree(const std::vector<ProcDir>& tasks) {
  for (const ProcDir& task : tasks) pids_.insert(task.pid());
}

/// Children that came since the tree was listed belong to it.
bool RunningTree::inside(pid_t pid) const {
  for (int depth = 0; pid > 1 && depth < 64; ++depth) {
    if (pids_.contains(pid)) return true;
    pid = ProcDir(pid).stat().ppid;
  }
  return false;
}

void RunningTree::look_outside(const Look& look) const {
  for (const int pid : numeric_entries(AT_FDCWD, "/proc")) {
    if (pids_.contains(pid) || pid == ::getpid()) continue;
    try {
      const ProcDir other(pid);
      if (inside(pid)) continue;
      for (const int fd : other.descriptors()) look(other, fd, other.link("fd/" + std::to_string(fd)));
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
      continue;  // it ended, or closed something, meanwhile
    }
  }
}

std::optional<std::string> RunningTree::outside_holder(const std::string& link) const {
  for (const int pid : numeric_entries(AT_FDCWD, "/proc")) {
    if (pids_.contains(pid) || pid == ::getpid()) continue;
    try {
      const ProcDir other(pid);
      for (const int fd : other.descriptors())
        if (other.link("fd/" + std::to_string(fd)) == link && !inside(pid))
          return "process " + std::to_string(pid) + " (" + other.stat().comm + ")";
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
      continue;  // it ended, or closed something, meanwhile
    }
  }
  return std::nullopt;
}

}  // namespace migrate
