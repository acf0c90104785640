// Taking CPU time from a running tree, so that it writes more slowly, without a trace afterwards.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "core/base/types.h"

namespace migrate {

/// Slows a tree down. Destroying it lifts. If our process dies, a keeper (a child that does nothing but wait for that)
/// lifts; should both be killed at once, lift_left_over() puts right what stays behind.
class Throttle {
 public:
  enum class Method {
    any,     ///< the first of the others that works here
    v1,      ///< the cpu controller of cgroup v1: a cgroup of our own below the tree's
    v2,      ///< cpu.max of the v2 cgroup that holds the tree and nothing else
    pauses,  ///< a freezer cgroup of our own, frozen for a part of every 20 ms
  };
  virtual ~Throttle() = default;
  /// Lets the tree have `share` (over 0, below 1) of the CPU time that it used from the making of this object until the
  /// first apply(). May be called again with another share; new tasks are taken in. Throws Error with all CPU time
  /// given back.
  virtual void apply(double share) = 0;
  /// Gives all CPU time back and leaves things as they were; no effect if nothing was applied. Do it right before a
  /// freeze: a task out of CPU time reaches no stop. Throws Error naming the cgroup that cannot be restored.
  virtual void lift() = 0;
  /// "cgroup v1 cpu quota": for people.
  virtual std::string how() const = 0;

  /// Finds a way for the tree of `root`, without touching it yet. `name` names cgroups of ours: letters, digits, '-'.
  /// Refusal telling why there is none. Not for several threads at a time.
  static std::unique_ptr<Throttle> for_tree(Pid root, const std::string& name, Method method = Method::any);
  /// If `task` is in a cgroup that a killed Throttle left behind (of that `name`; empty: any): lifts and removes that.
  /// The caller knows that its owner is dead (holds the tree's lock).
  static void lift_left_over(Pid task, const std::string& name = "");
};

/// Quota and period for a share of CPU time, in microseconds: short periods, so that pauses stay short, but no less
/// than the kernel's 1 ms of quota.
struct CpuQuota {
  uint64_t quota = 0, period = 0;
};
CpuQuota cpu_quota(double cpus);

/// CPU time that the tasks of a tree use.
class CpuUsage {
 public:
  explicit CpuUsage(Pid root);
  /// CPUs' worth that `tasks` used since the object was made; what has been running too briefly to tell counts as
  /// running all the time.
  double cpus(const std::set<pid_t>& tasks) const;

 private:
  std::map<pid_t, double> before_;  ///< seconds of CPU
  std::chrono::steady_clock::time_point since_;
};

/// The tree's living tasks, the root first seen; empty if the root is gone.
std::set<pid_t> tasks_of_tree(Pid root);

}  // namespace migrate
