// Cancelling blocked waits from another thread.
#pragma once

#include <atomic>

#include "core/base/fd.h"

namespace migrate {

/// Once triggered, every wait that watches it ends with Cancelled. Any thread may trigger it, also a signal handler.
/// Must outlive whoever watches it.
class StopEvent {
 public:
  StopEvent();
  void trigger() noexcept;
  bool stopped() const noexcept { return stopped_.load(std::memory_order_relaxed); }
  /// Readable for ever once triggered; for poll(2) only, never read from it.
  int fd() const { return fd_.get(); }

 private:
  Fd fd_;
  std::atomic<bool> stopped_{false};
};

}  // namespace migrate
