// Pre-copy: rounds of pages while the tree runs, until the policy says that it may be stopped.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>

#include "core/freeze/cpu_throttle.h"
#include "core/memory/dirty_tracker.h"
#include "migrate/policy/precopy_policy.h"
#include "migrate/session/source/memory_plan.h"
#include "migrate/session/source/write_history.h"

namespace migrate {

class Precopy final : public MemoryPlan {
 public:
  explicit Precopy(const PlanParts& parts) : p_(parts) {}
  bool visits() const override { return true; }
  bool tells_layouts() const override { return true; }
  bool touched() const override { return touched_; }
  std::optional<double> expected_downtime() const override { return last_decision_.now.total(); }
  bool leaves_rest() const override { return last_decision_.action == Decision::Action::postcopy; }
  void while_running() override;
  std::vector<StopMark> stops() const override;
  /// What of it is to be sent still.
  void frozen(FrozenTree& tree) override;
  /// Memories that the destination has nothing of are sent whole.
  void room_made(const wire::FillReady& ready, std::vector<PageSource>& memories) override;
  std::vector<RankedRun> fill_order(std::span<const PageSource> late) const override { return history_.rank(late); }
  /// A task that is out of CPU time reaches no stop.
  void before_running_on() noexcept override { throttle_.reset(); }
  RoundTotals rounds() const override { return totals_; }
  void learn(const MoveTimes& times) const override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Course;

  PageTotals send_round(DirtyTracker::Round& scan, unsigned n);
  /// False: the tree may be stopped.
  bool decide(Course& course, RoundMeasure& measure, const PageTotals& totals, const DirtyTracker::Round& sent,
              DirtyTracker::Round& next);
  void make_room(DirtyTracker::Round& round, unsigned n);
  void show(const PageProgress& progress) const;
  TreeSize size_of_tree() const;
  void prepare_throttle(PrecopyPolicy& policy);
  void throttle(PrecopyPolicy& policy, const Decision& decision);

  const PlanParts p_;
  bool touched_ = false;
  std::optional<DirtyTracker> tracker_;
  std::unique_ptr<Throttle> throttle_;
  std::set<MemoryId> in_rounds_;                       ///< that the last round's layout named
  std::map<MemoryId, std::vector<PageRun>> all_runs_;  ///< of the frozen tree, before the tracker reduced them
  FixedCost fixed_cost_;
  Decision last_decision_;
  RoundTotals totals_;
  WriteHistory history_;                      ///< without the first scan, which finds all
  std::chrono::microseconds last_compare_{};  ///< by content, while the tree was stopped
  Clock::time_point rounds_began_;
  Clock::time_point last_scan_began_;  ///< of those while the tree ran
};

}  // namespace migrate
