// The mappings of a task with the kernel's flags word, without reading /proc/PID/smaps, which walks all page tables (25
// ms a GiB of small pages, and the task's mmap(2) waits meanwhile): a BPF iterator over VMAs (Linux 6.1, bpf(2), with
// the kernel's type information in /sys/kernel/btf/vmlinux; CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {

/// A mapping and its vm_flags. What a bit means is the kernel's own affair (VmFlagBits learns it).
struct VmaWord {
  RemoteRange range;
  uint64_t word = 0;
};

/// The loaded iterator. Safe for use by several threads.
class VmaWalk {
 public:
  /// nullopt where this kernel or our capabilities do not allow it. Takes 10 to 20 ms: the kernel's types are read.
  static std::optional<VmaWalk> open();
  /// The mappings of the task `pid` (as our pid namespace numbers it), ascending; empty if it is gone. All that is
  /// mapped but [vsyscall], which has no VMA. A running task's may change meanwhile. Throws Error.
  std::vector<VmaWord> walk(pid_t pid) const;

 private:
  explicit VmaWalk(Fd program) : program_(std::move(program)) {}
  Fd program_;
};

}  // namespace migrate
