// Post-copy: the program runs at the destination before its memory is there; what it touches first comes first, from
// the frozen tree here. Hybrid: after rounds, so that only what was written since the last one comes late.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "migrate/session/handover/source_feed.h"
#include "migrate/session/source/memory_plan.h"

namespace migrate {

class Postcopy final : public MemoryPlan {
 public:
  enum class When : uint8_t {
    always,
    rest_is_left,  ///< else it is as `before` would have it
  };
  /// `before`: what is done while the tree runs; none: nothing but room for its mappings.
  Postcopy(const PlanParts& parts, std::unique_ptr<MemoryPlan> before, When when);
  bool visits() const override { return before_ && before_->visits(); }
  bool tells_layouts() const override { return true; }
  bool is_lazy() const override { return true; }
  bool touched() const override { return before_ && before_->touched(); }
  std::optional<double> expected_downtime() const override { return before_ ? before_->expected_downtime() : 0; }
  void while_running() override;
  std::vector<StopMark> stops() const override { return before_ ? before_->stops() : std::vector<StopMark>(); }
  /// Leaves what must be there when the program runs, and tells the destination what comes later.
  void frozen(FrozenTree& tree) override;
  void room_made(const wire::FillReady& ready, std::vector<PageSource>& memories) override;
  void before_running_on() noexcept override {
    if (before_) before_->before_running_on();
  }
  /// Feeds the destination until it is whole, over as many connections as that takes.
  void after_gate() override;
  RoundTotals rounds() const override { return before_ ? before_->rounds() : RoundTotals{}; }
  void learn(const MoveTimes& times) const override {
    if (before_) before_->learn(times);
  }

 private:
  using Clock = std::chrono::steady_clock;

  FeedParts feed_parts() const;
  bool serve_once();
  void beat();
  void connect_again();
  void wait_before_trying(std::chrono::milliseconds pause) const;
  [[noreturn]] void leave(const std::string& why) const;
  void tell_end(Clock::time_point began) const;

  const PlanParts p_;
  const std::unique_ptr<MemoryPlan> before_;
  const When when_;
  std::vector<PageSource> late_;  ///< what comes when the program runs; a thread of feed_ may be looking at it
  std::optional<SourceFeed> feed_;
  uint64_t left_ = 0;  ///< pages of what comes late, as far as is known
  bool cut_ = false;
  std::chrono::milliseconds pause_;     ///< before the next attempt to connect
  Clock::time_point connected_since_;   ///< at the last attempt that went well
  std::optional<Deadline> recover_by_;  ///< of this cut; none: without end
};

}  // namespace migrate
