// SIGINT, SIGTERM and SIGHUP as a StopEvent.
#pragma once

#include <signal.h>

#include <thread>

#include "core/base/fd.h"
#include "pageserver/stop_event.h"

namespace migrate {

/// Blocks what asks an agent to end, for a signalfd(2): SIGINT, SIGTERM and, unless whoever started us has us ignore it
/// (nohup), SIGHUP.
sigset_t block_end_signals();

/// While it lives the signals are blocked in this thread (make it before other threads) and trigger stop().
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;
  const StopEvent& stop() const { return stop_; }
  /// Also of a signal that the thread has not seen yet.
  bool interrupted() const;

 private:
  StopEvent stop_;
  StopEvent quit_;
  Fd signals_;
  std::thread thread_;
};

}  // namespace migrate
