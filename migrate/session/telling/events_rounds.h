// The events of pre-copy rounds, from the policy's numbers: one place for their names, fields and sentences.
// README.md, "Events", lists them.
#pragma once

#include <cstdint>
#include <string>

#include "migrate/policy/precopy_policy.h"
#include "migrate/session/telling/events.h"

namespace migrate {

/// What the policy does not need to know of a round.
struct RoundExtras {
  uint64_t zero_pages = 0;            ///< of the sent ones, without content
  uint64_t discarded = 0;             ///< ranges that are no more
  int64_t scan_us = 0, visit_us = 0;  ///< of its scan: in all, with tasks stopped for a visit
  uint64_t wire_bytes = 0;            ///< that it took, compressed; 0: as its pages
};
/// `round`: what it sent and what it left.
void tell_round(Events& events, const RoundMeasure& measure, const Decision& decision, const RoundExtras& extras);
/// `decide`: what the policy made of it, with all its numbers.
void tell_decision(Events& events, const Decision& decision);
/// `throttle`: what was done, `how` as CpuThrottle::how() says; `cpu_share` 1 for lifted.
void tell_throttle(Events& events, double cpu_share, const std::string& how);

/// Where a running round is.
struct RoundProgress {
  unsigned round = 0;
  uint64_t bytes = 0, total_bytes = 0;  ///< of this round
  double bandwidth = 0;                 ///< bytes per second
  /// Of the round before; negative: not known yet.
  double dirty_rate = -1;   ///< pages per second
  double estimate_ms = -1;  ///< downtime
  uint64_t wire_bytes = 0;  ///< that `bytes` took, compressed; 0: as many
};
/// The live line, event `progress`.
void show_round(Events& events, const RoundProgress& progress);

/// "12.3k", "4.1M": a count for a line in which room is short.
std::string human_count(double count);

}  // namespace migrate
