// Moving tasks between cgroups without waiting for the kernel.
#pragma once

#include <string>
#include <thread>

namespace migrate {

/// A write to cgroup.procs takes a lock that every fork and exit holds for reading, per CPU, so that the writer waits
/// for an RCU grace period (8 ms and more), unless another writer was there a moment ago (kernel/rcu/sync.c). While an
/// object of this class lives, a thread of ours "moves" our own process to where it is, every millisecond: the tree
/// that stands still is then moved in microseconds. Does nothing where there is no freezer. Never throws.
class QuickMoves {
 public:
  QuickMoves() noexcept;

 private:
  std::jthread thread_;
};

}  // namespace migrate
