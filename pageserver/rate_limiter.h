// A bandwidth limit that several streams share.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>

#include "pageserver/stop_event.h"

namespace migrate {

/// Token bucket of 10 ms: after a pause at most so much goes at once, and over any longer time the rate is kept.
/// set_rate() while nobody sends; acquire() from any number of threads, who are served in turn.
class RateLimiter {
 public:
  static constexpr std::chrono::milliseconds kBurst{10};

  /// Bytes per second; 0: no limit.
  void set_rate(uint64_t bytes_per_second);
  uint64_t rate() const { return rate_; }
  /// The largest piece that should be sent at once, so that streams take turns: a quarter of the burst. SIZE_MAX
  /// without a limit.
  size_t piece() const;
  /// Waits until `bytes` may be sent. Returns how long it waited, in seconds. Throws Cancelled if `stop` ends it.
  double acquire(size_t bytes, const StopEvent& stop);

 private:
  using Clock = std::chrono::steady_clock;
  uint64_t rate_ = 0;
  std::mutex mutex_;
  Clock::time_point next_{};  ///< when all that was granted is through at that rate
};

inline constexpr uint64_t kLeastBandwidthLimit = 64 << 10;
inline constexpr uint64_t kMostBandwidthLimit = uint64_t{1} << 40;
/// "200M", "1.5G", "800K", "5000000": bytes per second; K, M, G are powers of 1000, Ki, Mi, Gi of 1024, a "B" may
/// follow (not "b": bits). nullopt if it is none or out of the bounds above.
std::optional<uint64_t> parse_rate(std::string_view text);

}  // namespace migrate
