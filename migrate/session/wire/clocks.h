// How far apart the two hosts' clocks are, and what a moved tree's clocks must read.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/types.h"

namespace migrate {

/// One question and answer: our CLOCK_MONOTONIC before and after, and the peer's in between (ns).
struct ClockSample {
  int64_t before_ns = 0, after_ns = 0, peer_ns = 0;
};

/// What the tree's clocks read at one moment of the destination's CLOCK_MONOTONIC.
struct TreeClocks {
  int64_t monotonic_ns = 0, boottime_ns = 0, at_destination_ns = 0;
  int64_t uncertainty_ns = 0;
};

/// This process's clocks.
int64_t monotonic_now_ns();
int64_t boottime_now_ns();
/// How much further the clocks of `task` (its time namespace) are than ours.
struct ClockOffsets {
  int64_t monotonic_ns = 0, boottime_ns = 0;
};
ClockOffsets tree_clock_offsets(Pid task);

/// From the sample with the shortest round trip. Of the possible values the latest is taken, so that the tree never
/// sees time go backwards.
TreeClocks estimate_clocks(const std::vector<ClockSample>& samples, ClockOffsets tree,
                           int64_t boottime_minus_monotonic_ns);

}  // namespace migrate
