// How long tasks at the destination have waited for pages, as it tells the source.
#pragma once

#include <cstdint>

namespace migrate {

/// Since the process that serves there began; all that it tells may be a lie.
struct FeedWaits {
  uint64_t wanted = 0;      ///< pages that somebody waited for
  uint64_t by_request = 0;  ///< of these, came as an answer ...
  uint64_t by_fill = 0;     ///< ... or with the fill
  uint64_t waiting = 0;     ///< now
  uint64_t longest_us = 0;  ///< of those that wait now
  uint64_t median_us = 0, most_us = 0;
  uint64_t ninety_nine_us = 0;  ///< 99 of 100 waits were no longer
  uint64_t stalls_us = 0;       ///< waits of more than 3 ms, in sum
  bool operator==(const FeedWaits&) const = default;
};

}  // namespace migrate
