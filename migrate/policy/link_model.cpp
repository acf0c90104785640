#include "migrate/policy/link_model.h"

#include <algorithm>

namespace migrate {
namespace {

/// A round of that many bytes counts as much as all before it. Pages here and there go slower than the long runs of the
/// first round, and the last pages are like those of the last round.
constexpr double kHalf = 1 << 20;
constexpr double kEnoughToMeasure = 256 << 10;  ///< bytes; below, latency hides the bandwidth
constexpr double kAssumedBandwidth = 100e6;     ///< before anything was sent
constexpr double kShort = 0.02;                 ///< seconds; in longer rounds the overhead is lost in the noise
constexpr double kOverheadFollow = 0.3;

}  // namespace

void LinkModel::add(double bytes, double seconds, double measured) {
  if (seconds <= 0) return;
  const double transfer = measured > 0 ? bytes / measured : std::max(seconds - overhead_, seconds / 2);
  const bool first = seconds_per_byte_ <= 0;
  if (bytes > 0 && (first || bytes >= kEnoughToMeasure)) {
    const double weight = first ? 1 : bytes / (bytes + kHalf);
    seconds_per_byte_ += weight * (transfer / bytes - seconds_per_byte_);
  }
  if (seconds < kShort && !first) {
    const double rest = std::max(0.0, seconds - bytes / bandwidth());
    overhead_ += kOverheadFollow * (rest - overhead_);
  }
}

double LinkModel::bandwidth() const { return seconds_per_byte_ > 0 ? 1 / seconds_per_byte_ : kAssumedBandwidth; }

}  // namespace migrate
