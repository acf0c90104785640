// The kernel's clocks: as nanoseconds, and what they count.
#pragma once

#include <time.h>

#include <cstdint>

#include "core/base/error.h"

namespace migrate {

inline int64_t clock_ns(clockid_t clock) {
  timespec now{};
  check(::clock_gettime(clock, &now), "read", "a clock");
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

/// CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and those of other processes and threads, which are negative.
inline bool is_processor_time(clockid_t clock) {
  return clock < 0 || clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID;
}

}  // namespace migrate
