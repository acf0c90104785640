// SIGINT, SIGTERM and SIGHUP as a StopEvent.
#pragma once

#include <signal.h>

#include <chrono>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/fd.h"
#include "pageserver/stop_event.h"

namespace migrate {

/// Blocks what asks an agent to end, for a signalfd(2): SIGINT, SIGTERM and, unless whoever started us has us ignore it
/// (nohup), SIGHUP.
sigset_t block_end_signals();

/// While it lives the signals are blocked in this thread (make it before other threads) and trigger stop(). So does a
/// limit that is set, when its time is over.
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
  /// What ended the work, in words. Which wait was cut short is chance: it is "interrupted", or the limit's sentence,
  /// for all of them.
  std::string reason_of(const std::exception& failure) const;

  /// As if interrupted in that time, with another sentence. Once at a time.
  void set_limit(std::chrono::milliseconds time, std::string sentence);
  /// It has stopped nothing when this returns, unless interrupted() says so.
  void lift_limit();

 private:
  /// False: it was lifted meanwhile.
  bool pass_limit();
  /// In words, once it is interrupted.
  std::string why() const;

  StopEvent stop_;
  StopEvent quit_;
  Fd signals_, timer_;
  mutable std::mutex mutex_;
  std::string sentence_;  ///< of the limit
  bool passed_ = false;   ///< the limit was
  std::thread thread_;
};

}  // namespace migrate
