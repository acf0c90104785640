// When a live migration stops the program: after each round of pages this decides from the numbers alone. No input or
// output and no clock of its own, so that every decision can be repeated from the recorded events.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "migrate/policy/dirty_model.h"
#include "migrate/policy/fixed_cost.h"
#include "migrate/policy/link_model.h"

namespace migrate {

/// What to do when more rounds do not bring the downtime below the limit.
enum class OnNoConvergence {
  stop,      ///< freeze anyway, at the smallest downtime that can be had
  throttle,  ///< take CPU time from the tree, step by step; then as `stop`
  cancel,    ///< give up; the source runs on
  postcopy,  ///< freeze, and send what is left when the program runs at the destination
};

/// Times in seconds.
struct PolicyOptions {
  double max_downtime = 0.050;
  unsigned max_rounds = 30;   ///< counting round 0
  double max_total_time = 0;  ///< from the start to the open gate; 0: any
  OnNoConvergence on_no_convergence = OnNoConvergence::stop;
  bool rest_follows = false;  ///< also of a stop: what is left comes when the program runs there (only words differ)
};

/// One round, as measured. Times in seconds.
struct RoundMeasure {
  unsigned round = 0;          ///< 0: all pages
  uint64_t pages_sent = 0;     ///< including those that went as zero pages
  uint64_t content_pages = 0;  ///< of those, the ones with content; 0: all
  uint64_t bytes_sent = 0;     ///< of pages, before they are compressed: the rates below are of such bytes
  double seconds = 0;          ///< from its scan until the destination has acknowledged all
  double bandwidth = 0;        ///< bytes/s as the transport measured; 0: bytes_sent / seconds
  /// Bytes/s that go through while the tree is stopped; 0: as in the rounds. Differs where a bandwidth limit holds for
  /// the rounds only.
  double stopped_bandwidth = 0;
  uint64_t dirty_pages = 0;  ///< different pages found written at its end (the next round's scan), not yet sent
  double dirty_seconds = 0;  ///< between the two scans, in which they were written; 0: `seconds`
  /// Bytes that can only be sent while the tree is stopped, because their writes cannot be tracked.
  uint64_t stopped_private_bytes = 0, stopped_shared_bytes = 0;
  double compare_seconds = 0;  ///< to compare what was sent by content, while the tree is stopped
  double elapsed = 0;          ///< since the migration began
  /// Seconds of processor time on this host, meanwhile: used by the tree, by nobody, in all. 0: not known.
  double tree_cpu = 0, idle_cpu = 0, all_cpu = 0;
};

/// Downtime if the tree were frozen at some moment. Seconds.
struct DowntimeEstimate {
  double fixed = 0;    ///< freeze, images, finish, hand-over
  double dirty = 0;    ///< sending the written pages
  double stopped = 0;  ///< comparing by content and sending what cannot be tracked
  double total() const { return fixed + dirty + stopped; }
};

struct Decision {
  enum class Action { go_on, stop, throttle, cancel, postcopy };
  Action action = Action::go_on;
  std::string reason;            ///< one sentence
  double cpu_share = 1;          ///< throttle: share of its CPU time that the tree keeps
  double limit = 0;              ///< --max-downtime, seconds
  DowntimeEstimate now;          ///< if frozen now
  DowntimeEstimate next;         ///< if frozen after one more round
  double next_round = 0;         ///< seconds which that would take
  uint64_t dirty_pages = 0;      ///< to be sent if frozen now
  double dirty_rate = 0;         ///< pages per second
  double bandwidth = 0;          ///< bytes per second, in rounds
  double stopped_bandwidth = 0;  ///< bytes per second, while the tree is stopped
  double convergence = 0;        ///< bytes written per byte that can be sent; 1 or more: rounds do not shrink
};

const char* name_of(Decision::Action action);
/// All of it as event fields: estimate_ms, fixed_ms, dirty_ms, stopped_ms, next_estimate_ms, next_round_ms,
/// dirty_pages, dirty_rate, bandwidth, stopped_bandwidth, convergence, cpu_share, limit_ms.
std::vector<std::pair<std::string, double>> numbers_of(const Decision& decision);

class PrecopyPolicy {
 public:
  PrecopyPolicy(const PolicyOptions& options, const FixedCost& fixed) : options_(options), fixed_(fixed) {}

  /// Once a round, in order. After `stop`, `postcopy` or `cancel` it is not asked again.
  Decision after_round(const RoundMeasure& measure);
  /// The fixed cost is better known now (the tree grew, a part was measured).
  void set_fixed_cost(const FixedCost& fixed) { fixed_ = fixed; }
  /// Throttling, as decided, could not be done: the policy goes on without. `why` becomes part of later reasons.
  void cannot_throttle(const std::string& why);

 private:
  struct Bounds {
    bool rounds = false, time = false, no_gain = false;
    bool any() const { return rounds || time || no_gain; }
  };
  DowntimeEstimate estimate(double pages, const RoundMeasure& measure) const;
  double pages_after(double seconds) const;
  double free_pages() const;
  double stopped_bandwidth() const {
    return (stopped_bandwidth_ > 0 ? stopped_bandwidth_ : link_.bandwidth()) * freed_;
  }
  double settled_estimate(double slowed, const DowntimeEstimate& now) const;
  double throttle_goal(const DowntimeEstimate& now) const;
  void next_throttle_step(const DowntimeEstimate& now);
  void learn(const RoundMeasure& measure);
  Bounds bounds(const RoundMeasure& measure, const Decision& decision);
  bool worth_another(const Decision& decision) const;
  void decide_within(Decision& decision, const Bounds& bounds);
  void decide_above(Decision& decision, const Bounds& bounds);
  void not_converging(Decision& decision, const Bounds& bounds, double floor);
  std::string why(const Bounds& bounds, double floor) const;

  PolicyOptions options_;
  FixedCost fixed_;
  LinkModel link_;
  DirtyModel dirty_;
  double bytes_per_page_ = 4096;
  double stopped_bandwidth_ = 0;  ///< 0: as in the rounds
  double freed_ = 1;  ///< how many times as fast as in the rounds the transport is when the tree leaves it the CPUs
  double last_interval_ = 0;  ///< seconds in which the pages now dirty were written
  double best_ = -1;          ///< least estimate so far at this CPU share, seconds; negative: none yet
  unsigned stagnant_ = 0;     ///< rounds in a row that did not improve on it
  unsigned polished_ = 0;     ///< rounds done although the limit was met
  unsigned waited_ = 0;       ///< rounds done to meet a quieter moment
  size_t throttle_step_ = 0;  ///< steps used up
  DirtyModel free_;           ///< of the tree at its full speed, once it is throttled
  double cpu_share_ = 1, share_before_ = 1;
  std::string no_throttle_;
};

}  // namespace migrate
