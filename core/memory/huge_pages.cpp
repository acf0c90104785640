#include "core/memory/huge_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"
#include "core/memory/track_mappings.h"
#include "core/memory/track_scan.h"
#include "core/memory/track_tree.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace migrate {

HugePages HugePages::of_tree(Pid root) {
  HugePages all;
  for (const LivingTask& living : list_living(root)) {
    try {
      auto pidfd = open_pidfd(living.pid);
      if (!pidfd || living.borrows_memory) continue;
      Task task{std::move(*pidfd), ProcDir(living.pid).open("pagemap", O_RDONLY), {}};
      scan_existing(task.pagemap.get(), {0, kUserEnd}, &task.huge);
      if (!task.huge.empty()) all.tasks_.push_back(std::move(task));
    } catch (const Error&) {  // it ended
    }
  }
  return all;
}

void HugePages::put_back(std::chrono::milliseconds patience) const {
  const Deadline deadline = Deadline::in(patience);
  // A dying tracker's descriptors are closed one after the other: until its userfaultfd is, the next write to a
  // protected huge page splits that one.
  const auto whole = [](const Task& task) {
    try {
      return scan_tracked(task.pagemap.get(), {0, kUserEnd}).empty() &&
             collapse_split_pages(task.pidfd.get(), task.pagemap.get(), task.huge);
    } catch (const Error&) {  // it ended
      return true;
    }
  };
  while (!std::ranges::all_of(tasks_, whole) && !deadline.passed())
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

bool collapse_split_pages(int pidfd, int pagemap, const PageSet& huge) {
  PageSet whole;
  const PageSet existing = scan_existing(pagemap, {0, kUserEnd}, &whole);
  // A hole within would be filled: such a page the task itself has split.
  const PageSet split = (huge - whole) & existing;
  bool done = true;
  for (const PageSet::Range& r : split.ranges()) {
    for (uint64_t at = r.start / kHugePageSize * kHugePageSize; at < r.end; at += kHugePageSize) {
      if (!(PageSet(at, at + kHugePageSize) - existing).empty()) continue;
      const iovec piece{reinterpret_cast<void*>(at), kHugePageSize};  // NOLINT: an address of the task
      if (::syscall(SYS_process_madvise, pidfd, &piece, 1, MADV_COLLAPSE, 0) < 0) done = false;
    }
  }
  return done;
}

}  // namespace migrate
