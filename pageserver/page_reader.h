// Reads the pages of one memory. For .cpp files of this folder and of lazypages/feed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_io.h"

namespace migrate {

/// Any number of threads may read at the same time.
///
/// Pages of a task that no other process maps are read by process_vm_readv(2): a third less processor time than
/// pread(2) of /proc/PID/mem, which copies twice, through a page of its own. Never pages that are shared since a fork:
/// it pins what it reads, and pinning ends the sharing by a copy. The rest, and what a mapping's protection keeps it
/// from, is read by pread(2), which is not kept from anything.
///
/// A running task (PageSource::may_vanish) may do what it likes between looking and reading. If it forks, a few pages
/// are shared less. If it executes a program, what is read may be the new memory's: the next round finds a memory of
/// which nothing is known, so nothing of this is relied on.
class PageReader {
 public:
  /// Keeps a reference to `source`.
  explicit PageReader(const PageSource& source);

  /// Fills `out` with the pages from `address` on. False: the task is gone, and its pages with it. Throws Error if they
  /// cannot be read.
  [[nodiscard]] bool read(uint64_t address, std::span<std::byte> out) const;
  /// Likewise with the pages that a running task still has; `vanished` tells of the others, and has an entry a page.
  void read_existing(uint64_t address, std::span<std::byte> out, std::vector<bool>& vanished) const;

 private:
  /// A part of some pages: `count` of them from `first` on.
  struct Part {
    size_t first, count;
  };
  /// Finds the task behind `/proc/PID/mem`; without one everything is read by pread(2).
  void find_task();
  /// Reads what is exclusive by process_vm_readv(2), and calls `rest` with each part that is left.
  template <class Rest>
  void read_quickly(uint64_t address, std::span<std::byte> out, Rest rest) const;
  /// What process_vm_readv(2) can; returns the bytes, whole pages. 0 if the task is gone.
  size_t read_exclusive(uint64_t address, std::span<std::byte> out) const;
  bool read_any(uint64_t address, std::span<std::byte> out) const;
  void read_any_existing(uint64_t address, std::span<std::byte> out, Part part, std::vector<bool>& vanished) const;

  const PageSource& source_;
  std::string what_;
  pid_t pid_ = 0;  ///< 0: use pread(2)
  Fd pidfd_, pagemap_;
};

}  // namespace migrate
