// Moving tasks between cgroups without waiting for the kernel.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <latch>
#include <mutex>
#include <thread>

namespace migrate {

/// A write to cgroup.procs takes a lock that every fork and exit holds for reading, per CPU, so that the writer waits
/// for an RCU grace period (8 ms and more), unless another writer was there a moment ago (kernel/rcu/sync.c). While an
/// object of this class lives, a thread of ours "moves" our own process to where it is, every millisecond: the tree
/// that stands still is then moved in microseconds; so is whoever is moved within a millisecond of its end. Does
/// nothing where there is no freezer. Never throws. Who clones processes by himself (no atfork handlers) ends it
/// before.
class QuickMoves {
 public:
  /// Begins in the background, and ends by itself at that time at the latest.
  explicit QuickMoves(std::chrono::milliseconds at_most = std::chrono::hours(1)) noexcept;
  /// Waits until moves are quick, or never will be.
  void wait() const noexcept { first_move_.wait(); }
  /// Goes on until then; false if it has ended.
  bool extend(std::chrono::milliseconds at_most) noexcept;
  /// No more moves; whoever destroys the object waits for the thread.
  void end() noexcept { thread_.request_stop(); }

 private:
  using Clock = std::chrono::steady_clock;
  void run(const std::stop_token& stop) noexcept;

  std::atomic<Clock::time_point> until_;
  std::atomic<bool> ended_ = false;
  std::latch first_move_{1};  ///< until it is through, or will never be
  std::mutex mutex_;
  std::condition_variable_any never_;  ///< only a stop ends a wait for it early
  std::jthread thread_;
};

}  // namespace migrate
