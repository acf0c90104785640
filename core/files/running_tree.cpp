#include "core/files/running_tree.h"

#include <unistd.h>

namespace migrate {

RunningTree::RunningTree(const std::vector<ProcDir>& tasks) {
  for (const ProcDir& task : tasks) pids_.insert(task.pid());
}

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

std::optional<std::string> RunningTree::outside(const Match& match) const {
  for (const int pid : numeric_entries(AT_FDCWD, "/proc")) {
    if (pids_.contains(pid) || pid == ::getpid()) continue;
    try {
      const ProcDir other(pid);
      for (const int fd : other.descriptors())
        if (match(other, std::to_string(fd)) && !inside(pid))
          return "process " + std::to_string(pid) + " (" + other.stat().comm + ")";
    } catch (const Error& e) {
      if (!cannot_be_seen(e)) throw;
      continue;  // it ended, or closed something, meanwhile
    }
  }
  return std::nullopt;
}

std::optional<std::string> RunningTree::outside_holder(const std::string& link) const {
  return outside([&](const ProcDir& other, const std::string& fd) { return other.link("fd/" + fd) == link; });
}

std::optional<std::string> RunningTree::outside_writer(const InodeKey& file) const {
  return outside([&](const ProcDir& other, const std::string& fd) {
    if (!other.link("fd/" + fd).starts_with("/")) return false;
    if (inode_of(stat_cached(other.fd(), "fd/" + fd, 0, "a file")) != file) return false;
    const uint32_t flags = parse_fdinfo(other.read("fdinfo/" + fd)).flags;
    return (flags & O_PATH) == 0 && (flags & O_ACCMODE) != O_RDONLY;
  });
}

}  // namespace migrate
