#include "migrate/session/wire/clocks.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/fd.h"
#include "core/base/proc_values.h"

namespace migrate {
namespace {

/// /proc/PID/timens_offsets: of the namespace that the task's children will be in, relative to the host. A task that
/// unshared it for its children only (the two differ) is refused by the dump.
ClockOffsets offsets_in(const std::string& path) {
  ClockOffsets offsets;
  try {
    const ClockOffsetsText text = parse_clock_offsets(read_file_at(AT_FDCWD, path, 4096));
    offsets = {text.monotonic_ns, text.boottime_ns};
  } catch (const Error&) {
    // A kernel without time namespaces: all clocks are the host's.
  }
  return offsets;
}

}  // namespace

int64_t monotonic_now_ns() { return clock_ns(CLOCK_MONOTONIC); }
int64_t boottime_now_ns() { return clock_ns(CLOCK_BOOTTIME); }

ClockOffsets tree_clock_offsets(Pid task) {
  const ClockOffsets own = offsets_in("/proc/self/timens_offsets");
  const ClockOffsets theirs = offsets_in("/proc/" + std::to_string(task.get()) + "/timens_offsets");
  return {theirs.monotonic_ns - own.monotonic_ns, theirs.boottime_ns - own.boottime_ns};
}

TreeClocks estimate_clocks(const std::vector<ClockSample>& samples, ClockOffsets tree,
                           int64_t boottime_minus_monotonic_ns) {
  if (samples.empty()) throw Error("compare the clocks: no answers");
  const ClockSample best = *std::min_element(
      samples.begin(), samples.end(),
      [](const ClockSample& a, const ClockSample& b) { return a.after_ns - a.before_ns < b.after_ns - b.before_ns; });
  TreeClocks clocks;
  clocks.at_destination_ns = best.peer_ns;
  clocks.uncertainty_ns = best.after_ns - best.before_ns;
  clocks.monotonic_ns = best.after_ns + tree.monotonic_ns;
  clocks.boottime_ns = best.after_ns + boottime_minus_monotonic_ns + tree.boottime_ns;
  return clocks;
}

}  // namespace migrate
