// Holding a tree frozen without a tracer: a freezer cgroup of our own, v2 (`cgroup.freeze`) where it is mounted, else
// the v1 freezer controller. Survives the death of every process of ours; whoever knows the paths can go on.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/types.h"

namespace migrate {

enum class CgroupVersion { any, v1, v2 };

/// Where a task's freezer-relevant cgroup is: the folder in the mounted hierarchy.
class FreezerCgroup {
 public:
  /// What another process needs to go on with it (written to journals).
  struct Record {
    bool v2 = true;
    std::vector<std::string> folders;        ///< ours, absolute paths
    std::map<pid_t, std::string> came_from;  ///< task → folder it was in before
  };

  /// What hold() would make, without making it: for a journal that must name the folders before they exist.
  static Record plan(const std::vector<Pid>& pids, const std::string& name, CgroupVersion version = CgroupVersion::any);
  /// Our own cgroup in the hierarchy that hold() would use.
  static std::string own_folder(CgroupVersion version = CgroupVersion::any);
  /// Likewise for create().
  static Record plan_create(const std::string& name, CgroupVersion version = CgroupVersion::any);
  /// Carries out a plan. On failure everything is moved back and removed.
  static FreezerCgroup hold(Record planned);

  /// Makes a child cgroup named `name` under the current cgroup of each of `pids` (one folder a distinct cgroup) and
  /// moves the tasks there. On failure everything is moved back and removed. Refuses threaded v2 cgroups.
  static FreezerCgroup hold(const std::vector<Pid>& pids, const std::string& name,
                            CgroupVersion version = CgroupVersion::any);
  /// Makes one empty cgroup `name` under the cgroup of the calling process (v2: its folder; v1: likewise), for a
  /// restore: tasks are put there as they are forked.
  static FreezerCgroup create(const std::string& name, CgroupVersion version = CgroupVersion::any);
  /// Likewise, but below that of `parents` which is in the hierarchy that is used, if one is.
  static FreezerCgroup create_below(const std::vector<std::string>& parents, const std::string& name);
  /// Takes over what a dead process left.
  static FreezerCgroup adopt(Record record);

  FreezerCgroup(FreezerCgroup&&) noexcept = default;
  FreezerCgroup& operator=(FreezerCgroup&&) noexcept = default;
  /// Does NOT thaw or remove: a held tree must survive us. Call dissolve().
  ~FreezerCgroup() = default;

  const Record& record() const { return record_; }
  /// Adds a task (and what it forks from then on).
  void add(Pid pid);
  /// Freezes and waits until the kernel says frozen; Error after `timeout` (thawed again).
  void freeze(std::chrono::milliseconds timeout);
  void thaw();
  bool frozen() const;
  std::vector<Pid> members() const;
  /// SIGKILL to all members, by cgroup.kill or pidfds, and waits until the cgroup is empty. v1 thaws after the signals
  /// are queued.
  void kill_all(std::chrono::milliseconds timeout);
  /// Thaws, moves members back to where they came from (or to the parent) and removes the folders. Never throws for
  /// tasks that died meanwhile.
  void dissolve();

 private:
  explicit FreezerCgroup(Record record) : record_(std::move(record)) {}
  Record record_;
};

}  // namespace migrate
