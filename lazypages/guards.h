// Guard regions of a task's (MADV_GUARD_INSTALL, 6.13): no event tells of them, and UFFDIO_COPY removes them.
#pragma once

#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {

/// Bound to the memory that the process had when it was made, also once it executes another program.
class GuardScan {
 public:
  /// Finds nothing: of a memory whose process is not known.
  GuardScan() = default;
  /// Of the process that `pidfd` refers to; finds nothing if that is gone, or the kernel cannot tell (before 6.16).
  explicit GuardScan(int pidfd);
  /// Another one's pagemap; none: finds nothing.
  explicit GuardScan(Fd pagemap) : pagemap_(std::move(pagemap)) {}

  /// Guard regions in `range`, ascending: a system call of about 1 us for 64 KiB.
  std::vector<RemoteRange> in(RemoteRange range);

  /// -1: none. Stays open as long as this lives: its number is recorded.
  int pagemap() const { return pagemap_.get(); }
  /// It stays open.
  void let_go() { pagemap_.release(); }

 private:
  Fd pagemap_;
  bool useless_ = false;
};

}  // namespace migrate
