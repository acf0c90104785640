// struct sched_attr of sched_setattr(2), its second version (Linux 5.3): glibc has none, and linux/sched/types.h does
// not go with sched.h.
#pragma once

#include <cstdint>

namespace migrate {

struct SchedAttr {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;  ///< of ordinary threads `runtime` is their slice (Linux 6.12)
  uint32_t util_min, util_max;         ///< both 0: this kernel has no clamps
};

/// SCHED_FLAG_RESET_ON_FORK
inline constexpr uint64_t kResetOnFork = 1;
/// SCHED_FLAG_KEEP_ALL, SCHED_FLAG_UTIL_CLAMP
inline constexpr uint64_t kOnlyClamps = 0x18 | 0x60;
inline constexpr uint32_t kMostUtilization = 1024;  ///< SCHED_CAPACITY_SCALE

}  // namespace migrate
