#include <algorithm>
#include <vector>

#include "core/base/procfs.h"
#include "core/freeze/throttle_ways.h"

namespace migrate {
namespace {

constexpr int kDepth = 32;

/// All tasks in a cgroup and below.
void add_members(const std::string& folder, std::set<pid_t>& all, int depth) {
  if (depth > kDepth) throw Error("cgroups nest too deeply below " + folder);
  all.merge(pids_in(folder + "/cgroup.procs"));
  std::vector<std::string> inner;
  try {
    for_entries(AT_FDCWD, folder, [&](const dirent& e) {
      if (e.d_type == DT_DIR) inner.push_back(folder + "/" + e.d_name);
    });
  } catch (const Error& e) {
    if (e.code() != ENOENT && e.code() != ENODEV) throw;  // it has been removed
  }
  for (const std::string& each : inner) add_members(each, all, depth + 1);
}

/// Sets `cpu.max` of the cgroup that is the tree's own. A child cgroup would not do: v2 gives controllers to the
/// children of a cgroup only if it holds no tasks itself.
class QuotaV2 final : public Throttle {
 public:
  QuotaV2(Pid root, std::string folder) : root_(root), folder_(std::move(folder)), usage_(root) { demand_alone(); }
  QuotaV2(const QuotaV2&) = delete;
  QuotaV2& operator=(const QuotaV2&) = delete;
  ~QuotaV2() override {
    try {
      lift();
    } catch (const Error&) {  // the cgroup is gone, or the limit stays: nobody to tell here
    }
  }

  void apply(double share) override {
    demand_alone();
    if (cpus_ < 0) cpus_ = usage_.cpus(tasks_of_tree(root_));
    if (!keeper_) {
      before_ = read_file_at(AT_FDCWD, file());
      before_.erase(before_.find_last_not_of(" \n") + 1);
      keeper_ = std::make_unique<Keeper>([path = file(), before = before_](const Keeper::ParentDied& parent_died) {
        parent_died(-1);
        write_cgroup_file(path, before);
      });
    }
    const CpuQuota q = cpu_quota(std::clamp(share, 0.01, 1.0) * cpus_);
    try {
      demand_write_cgroup_file(file(), std::to_string(q.quota) + " " + std::to_string(q.period));
    } catch (const Error&) {
      lift();
      throw;
    }
  }

  void lift() override {
    if (!keeper_) return;
    if (const int err = write_cgroup_file(file(), before_); err != 0 && err != ENOENT && err != ENODEV) {
      throw Error("write " + before_ + " to", file(), err);
    }
    keeper_.reset();
  }

  std::string how() const override { return "cgroup v2 cpu.max of " + folder_; }

 private:
  std::string file() const { return folder_ + "/cpu.max"; }

  void demand_alone() const {
    std::set<pid_t> members;
    add_members(folder_, members, 0);
    const std::set<pid_t> tree = tasks_of_tree(root_);
    for (const pid_t pid : members) {
      if (tree.count(pid) != 0) continue;
      // A zombie is listed, and is slowed down by nothing.
      throw Refusal("cgroup " + folder_ + " holds task " + std::to_string(pid) + ", which is not of the tree",
                    "run the tree in a cgroup of its own");
    }
  }

  Pid root_;
  std::string folder_;
  CpuUsage usage_;
  double cpus_ = -1;    ///< what the tree used; negative: not known yet
  std::string before_;  ///< of cpu.max
  std::unique_ptr<Keeper> keeper_;
};

std::string common_folder(const std::string& a, const std::string& b) {
  std::string common = a;
  while (b != common && !b.starts_with(common + "/")) common = parent_cgroup(common);
  return common;
}

}  // namespace

std::unique_ptr<Throttle> throttle_v2_in(Pid root, const std::string& folder) {
  try {
    read_file_at(AT_FDCWD, folder + "/cpu.max");
  } catch (const Error&) {
    throw Refusal("cgroup " + folder + " has no cpu.max",
                  "enable the cpu controller in its parent's cgroup.subtree_control");
  }
  return std::make_unique<QuotaV2>(root, folder);
}

std::unique_ptr<Throttle> throttle_v2(Pid root) {
  const auto mount = find_cgroup_mount(read_file_at(AT_FDCWD, "/proc/self/mountinfo"), true);
  if (!mount) throw Refusal("no cgroup v2 hierarchy is mounted", "mount it");
  std::string folder = cgroup_folder(*mount, root.get(), true);
  for (const pid_t pid : tasks_of_tree(root)) folder = common_folder(folder, cgroup_folder(*mount, pid, true));
  return throttle_v2_in(root, folder);
}

}  // namespace migrate
