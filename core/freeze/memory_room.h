// How much memory programs in a cgroup can still get.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace migrate {

/// Bytes that programs on this host can have without swapping (MemAvailable of proc(5)).
uint64_t memory_available();

struct MemoryRoom {
  uint64_t bytes = 0;
  std::string where;  ///< folder of the cgroup that bounds it; empty: the host does
};

/// For whoever is in these cgroups (folders; of other controllers than memory, too): what the tightest limit of theirs
/// and of those above them leaves, with what the kernel would take back of their files and could swap out; at most what
/// is available. A hint: others take memory meanwhile.
MemoryRoom memory_room(const std::vector<std::string>& folders);
/// For whoever is where `pid` is.
MemoryRoom memory_room_at(pid_t pid);

/// The same, of a process that is asked for while a program stands still: what takes time is looked up before.
class MemoryPlace {
 public:
  /// Reads all mounts.
  explicit MemoryPlace(pid_t pid);
  pid_t pid() const { return pid_; }
  /// As it is now. Mounts are only read again if the process was moved to another cgroup meanwhile.
  MemoryRoom room();

 private:
  void look_up();

  pid_t pid_;
  std::string cgroups_;  ///< its /proc/PID/cgroup
  std::vector<std::string> folders_;
};

}  // namespace migrate
