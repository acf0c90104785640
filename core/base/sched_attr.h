// struct sched_attr of sched_setattr(2), its first version: glibc has none, and linux/sched/types.h does not go with
// sched.h.
#pragma once

#include <cstdint>

namespace migrate {

struct SchedAttr {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;  ///< of ordinary threads `runtime` is their slice (Linux 6.12)
};

/// SCHED_FLAG_RESET_ON_FORK
inline constexpr uint64_t kResetOnFork = 1;

}  // namespace migrate
