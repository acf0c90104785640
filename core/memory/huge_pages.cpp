#include "core/memory/huge_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"
#include "core/memory/pagemap_word.h"
#include "core/memory/track_mappings.h"
#include "core/memory/track_scan.h"
#include "core/memory/track_tree.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace migrate {
namespace {

long collapse(int pidfd, uint64_t at) {
  const iovec piece{reinterpret_cast<void*>(at), kHugePageSize};  // NOLINT: an address of the task
  return ::syscall(SYS_process_madvise, pidfd, &piece, 1, MADV_COLLAPSE, 0);
}

/// Only this task has these pages (pagemap's bit 56): a collapse would copy what is shared since a fork.
bool are_its_own(int pagemap, uint64_t address) {
  using namespace pagemap_word;
  std::array<uint64_t, kHugePageSize / kPageSize> words{};
  const ssize_t got =
      ::pread(pagemap, words.data(), sizeof words, static_cast<off_t>(address / kPageSize * sizeof(uint64_t)));
  return got == sizeof words &&
         std::ranges::all_of(words, [](uint64_t word) { return (word & kExclusive) != 0 && (word & kPresent) != 0; });
}

}  // namespace

HugePages HugePages::of_tree(Pid root) {
  HugePages all;
  for (const LivingTask& living : list_living(root)) {
    try {
      auto pidfd = open_pidfd(living.pid);
      if (!pidfd || living.borrows_memory) continue;
      Task task{{MemoryId::Kind::task, static_cast<uint64_t>(living.image_pid)},
                std::move(*pidfd),
                ProcDir(living.pid).open("pagemap", O_RDONLY),
                {}};
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
      if (collapse(pidfd, at) < 0) done = false;
    }
  }
  return done;
}

PagesByMemory HugePages::pages() const {
  PagesByMemory all;
  for (const Task& task : tasks_) all[task.memory] = task.huge;
  return all;
}

Collapsed collapse_block(int pidfd, int pagemap, uint64_t address) {
  const PageSet block(address, address + kHugePageSize);
  PageSet huge;
  const PageSet existing = scan_existing(pagemap, block.ranges().front(), &huge);
  if (existing != block || !huge.empty() || !are_its_own(pagemap, address)) return Collapsed::needless;
  if (collapse(pidfd, address) >= 0) return Collapsed::done;
  switch (errno) {
    case EAGAIN:
    case EBUSY:
    case EINTR:
      return Collapsed::later;
    case ENOMEM:
      return Collapsed::no_memory;
    case ESRCH:
      return Collapsed::gone;
    default:
      return Collapsed::never;
  }
}

}  // namespace migrate
