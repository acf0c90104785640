// SIGINT, SIGTERM and SIGHUP as a StopEvent.
#pragma once

#include <signal.h>

#include <exception>
#include <string>
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
  /// Throws Cancelled.
  void throw_if_interrupted() const;
  /// What ended the work, in words. Which wait the user cut short is chance: it is "interrupted" for all of them.
  std::string reason_of(const std::exception& failure) const;

 private:
  StopEvent stop_;
  StopEvent quit_;
  Fd signals_;
  std::thread thread_;
};

}  // namespace migrate
