#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/procfs.h"
#include "core/freeze/throttle_ways.h"

namespace migrate {
namespace {

constexpr int kMostPasses = 20;  ///< over a tree that forks while it is moved

uint64_t threads_of(const std::set<pid_t>& tasks) {
  uint64_t n = 0;
  for (const pid_t pid : tasks) {
    try {
      n += ProcDir(pid).threads().size();
    } catch (const Error&) {  // died meanwhile
    }
  }
  return n;
}

/// A cgroup of our own below each cgroup of the tree, with a quota.
class QuotaV1 final : public Throttle {
 public:
  QuotaV1(Pid root, const std::string& name, CgroupMount mount)
      : root_(root), name_(name), mount_(std::move(mount)), usage_(root) {
    for (const pid_t pid : tasks_of_tree(root)) demand_one_cgroup(pid);
  }
  QuotaV1(const QuotaV1&) = delete;
  QuotaV1& operator=(const QuotaV1&) = delete;
  ~QuotaV1() override {
    try {
      lift();
    } catch (const Error&) {  // the keeper of lift_left_over() has the next word
    }
  }

  void apply(double share) override {
    try {
      apply_or_throw(std::clamp(share, 0.01, 1.0));
    } catch (const Error&) {
      lift();
      throw;
    }
  }

  void lift() override {
    // Time first: moving tasks that have none left takes long.
    for (const auto& [folder, tasks] : held_) write_cgroup_file(folder + "/cpu.cfs_quota_us", "-1");
    for (const auto& [folder, tasks] : held_) remove_cgroup(folder);
    held_.clear();
    keeper_.reset();
  }

  std::string how() const override { return "cgroup v1 cpu quota"; }

 private:
  std::string folder_of(pid_t pid) const { return cgroup_folder(mount_, pid, false, "cpu"); }

  /// v1 lets threads of a process be in cgroups of their own; moving a process would forget which.
  void demand_one_cgroup(pid_t pid) const {
    const std::string of_process = folder_of(pid);
    const ProcDir proc(pid);
    for (const pid_t tid : proc.threads()) {
      const auto path = find_cgroup_path(proc.thread(tid).read("cgroup"), false, "cpu");
      if (path != find_cgroup_path(proc.read("cgroup"), false, "cpu")) {
        throw Refusal("thread " + std::to_string(tid) + " of task " + std::to_string(pid) +
                          " is in a cpu cgroup of its own, not in " + of_process,
                      "it cannot be slowed down without losing that");
      }
    }
  }

  void apply_or_throw(double share) {
    for (int pass = 0;; ++pass) {
      if (!take_in(tasks_of_tree(root_))) break;
      if (pass == kMostPasses) throw Error("task " + std::to_string(root_.get()) + " forks faster than it can be held");
    }
    if (held_.empty()) throw Error("slow down", "task " + std::to_string(root_.get()), ESRCH);
    for (auto& [folder, cpus] : held_) {
      const std::set<pid_t> members = pids_in(folder + "/cgroup.procs");
      if (cpus < 0) cpus = usage_.cpus(members);
      const CpuQuota q = cpu_quota(share * cpus);
      // What runs beside it in the parent counts a task at a time: as a group it must not get less than its tasks did.
      const uint64_t weight = std::clamp<uint64_t>(threads_of(members) * 1024, 1024, 262144);
      write_cgroup_file(folder + "/cpu.shares", std::to_string(weight));
      demand_write_cgroup_file(folder + "/cpu.cfs_period_us", std::to_string(q.period));
      demand_write_cgroup_file(folder + "/cpu.cfs_quota_us", std::to_string(q.quota));
    }
  }

  /// Moves those that are not held yet; whether there were any.
  bool take_in(const std::set<pid_t>& tasks) {
    bool moved = false;
    for (const pid_t pid : tasks) {
      std::string from;
      try {
        from = folder_of(pid);
      } catch (const Error& e) {
        if (e.code() == ENOENT || e.code() == ESRCH) continue;  // died meanwhile
        throw;
      }
      if (cgroup_name(from) == name_) continue;
      hold(from + "/" + name_);
      const int err = write_cgroup_file(from + "/" + name_ + "/cgroup.procs", std::to_string(pid));
      if (err != 0 && err != ESRCH)
        throw Error("move task " + std::to_string(pid) + " to cgroup", from + "/" + name_, err);
      moved = true;
    }
    return moved;
  }

  void hold(const std::string& folder) {
    if (held_.count(folder) != 0) return;
    check(::mkdir(folder.c_str(), 0755), "make cgroup", folder);
    held_.emplace(folder, -1);
    std::vector<std::string> folders;
    for (const auto& [path, cpus] : held_) folders.push_back(path);
    auto keeper = std::make_unique<Keeper>([folders](const Keeper::ParentDied& parent_died) {
      parent_died(-1);
      for (const std::string& path : folders) write_cgroup_file(path + "/cpu.cfs_quota_us", "-1");
      for (const std::string& path : folders) remove_cgroup(path);
    });
    keeper_ = std::move(keeper);
  }

  Pid root_;
  std::string name_;
  CgroupMount mount_;
  CpuUsage usage_;
  std::map<std::string, double> held_;  ///< our folders → CPUs that their tasks used; negative: not known yet
  std::unique_ptr<Keeper> keeper_;
};

}  // namespace

std::unique_ptr<Throttle> throttle_v1(Pid root, const std::string& name) {
  auto mount = find_cgroup_mount(read_file_at(AT_FDCWD, "/proc/self/mountinfo"), false, "cpu");
  if (!mount) throw Refusal("no cgroup v1 hierarchy with the cpu controller is mounted", "mount it");
  return std::make_unique<QuotaV1>(root, name, std::move(*mount));
}

}  // namespace migrate
