// Timers are dumped as remaining time and armed again with what is left of it.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>

namespace migrate {

/// Nanoseconds left of a timer that had `seconds` and `nanoseconds` left `elapsed_ns` ago. 0 for a disarmed timer; one
/// that should have expired meanwhile has 1 left, since 0 would disarm it. Impossible values are cut to the kernel's
/// longest time (KTIME_MAX, 292 years).
inline uint64_t time_left_ns(uint64_t seconds, uint64_t nanoseconds, uint64_t elapsed_ns) {
  constexpr uint64_t kSecond = 1'000'000'000, kLongest = INT64_MAX / kSecond - 1;
  const uint64_t ns = std::min(seconds, kLongest) * kSecond + std::min(nanoseconds, kSecond - 1);
  if (ns == 0) return 0;
  return ns > elapsed_ns ? ns - elapsed_ns : 1;
}

/// What was left `ago_ns` ago of a timer with `left` now; 0 for a disarmed timer. Impossible values stay.
inline timespec time_left_then(timespec left, int64_t ago_ns) {
  constexpr int64_t kSecond = 1'000'000'000, kLongest = INT64_MAX / kSecond;
  if (left.tv_sec == 0 && left.tv_nsec == 0) return left;
  if (left.tv_sec < 0 || left.tv_sec > kLongest - ago_ns / kSecond - 2 || left.tv_nsec < 0 || left.tv_nsec >= kSecond)
    return left;
  left.tv_nsec += ago_ns % kSecond;
  left.tv_sec += ago_ns / kSecond + left.tv_nsec / kSecond;
  left.tv_nsec %= kSecond;
  return left;
}

/// What has become of a timer with an interval: how often it expired meanwhile, and when it does next.
struct PeriodicTimer {
  uint64_t missed = 0;
  uint64_t next_ns = 0;  ///< from now; 0: disarmed
};

/// Like time_left_ns(). Without an interval nothing is missed: such a timer expires at once.
inline PeriodicTimer periodic_time_left(uint64_t left_ns, uint64_t interval_ns, uint64_t elapsed_ns) {
  if (left_ns == 0 || elapsed_ns < left_ns) return {0, left_ns == 0 ? 0 : left_ns - elapsed_ns};
  if (interval_ns == 0) return {0, 1};
  const uint64_t late = elapsed_ns - left_ns;
  return {late / interval_ns + 1, interval_ns - late % interval_ns};
}

}  // namespace migrate
