#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "core/freeze/freezer_cgroup.h"
#include "core/freeze/throttle_ways.h"

namespace migrate {
namespace {

constexpr int kPeriod = 20;  ///< ms
constexpr int kPasses = 20;
constexpr auto kFreezeTime = std::chrono::milliseconds(200);

/// In the keeper: frozen for a part of each period, until our process dies.
void pause_again_and_again(const FreezerCgroup::Record& record, int pause, const Keeper::ParentDied& parent_died) {
  FreezerCgroup cgroup = FreezerCgroup::adopt(record);
  for (;;) {
    if (parent_died(kPeriod - pause)) break;
    try {
      cgroup.freeze(kFreezeTime);
    } catch (const Error&) {  // a task in an unfreezable sleep: another time
    }
    const bool dead = parent_died(pause);
    cgroup.thaw();
    if (dead) break;
  }
  cgroup.dissolve();
}

/// Freezes the tree for a part of the time. Unlike signals this is not seen by parents or debuggers.
class Pauses final : public Throttle {
 public:
  Pauses(Pid root, std::string name) : root_(root), name_(std::move(name)) { FreezerCgroup::plan(pids(), name_); }
  Pauses(const Pauses&) = delete;
  Pauses& operator=(const Pauses&) = delete;
  ~Pauses() override {
    try {
      lift();
    } catch (const Error&) {  // lift_left_over() has the next word
    }
  }

  void apply(double share) override {
    keeper_.reset();
    try {
      hold();
      const int pause = std::clamp(static_cast<int>(std::lround(kPeriod * (1 - share))), 1, kPeriod - 1);
      keeper_ = std::make_unique<Keeper>([record = cgroup_->record(), pause](const Keeper::ParentDied& parent_died) {
        pause_again_and_again(record, pause, parent_died);
      });
    } catch (const Error&) {
      lift();
      throw;
    }
  }

  void lift() override {
    // The keeper first: it would freeze again.
    keeper_.reset();
    if (cgroup_) cgroup_->dissolve();
    cgroup_.reset();
  }

  std::string how() const override { return "pauses by the freezer cgroup"; }

 private:
  std::vector<Pid> pids() const {
    std::vector<Pid> all;
    for (const pid_t pid : tasks_of_tree(root_)) all.emplace_back(pid);
    return all;
  }

  void hold() {
    if (cgroup_) {
      cgroup_->thaw();  // the keeper before may have been killed in a pause
    } else {
      cgroup_ = FreezerCgroup::hold(pids(), name_);
    }
    // What was forked by tasks that had not been moved yet.
    for (int pass = 0;; ++pass) {
      const std::vector<Pid> inside = cgroup_->members();
      bool missing = false;
      for (const Pid pid : pids()) {
        if (std::find(inside.begin(), inside.end(), pid) != inside.end()) continue;
        missing = true;
        add(pid);
      }
      if (!missing) return;
      if (pass == kPasses) throw Error("task " + std::to_string(root_.get()) + " forks faster than it can be held");
    }
  }

  void add(Pid pid) {
    try {
      cgroup_->add(pid);
    } catch (const Error& e) {
      if (e.code() != ENOENT && e.code() != ESRCH) throw;  // else it died meanwhile
    }
  }

  Pid root_;
  std::string name_;
  std::optional<FreezerCgroup> cgroup_;
  std::unique_ptr<Keeper> keeper_;
};

}  // namespace

std::unique_ptr<Throttle> throttle_pauses(Pid root, const std::string& name) {
  return std::make_unique<Pauses>(root, name);
}

}  // namespace migrate
