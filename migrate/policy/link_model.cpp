#include "migrate/policy/link_model.h"

#include <algorithm>

namespace migrate {
namespace {

constexpr double kForgetting = 0.3;
constexpr double kEnoughToMeasure = 4 << 20;  ///< bytes; below, latency hides the bandwidth
constexpr double kAssumedBandwidth = 100e6;   ///< before anything was sent
constexpr double kShort = 0.02;               ///< seconds; in longer rounds the overhead is lost in the noise
constexpr double kOverheadFollow = 0.3;

}  // namespace

void LinkModel::add(double bytes, double seconds, double measured) {
  if (seconds <= 0) return;
  const double transfer = measured > 0 ? bytes / measured : std::max(seconds - overhead_, seconds / 2);
  const bool first = seconds_ <= 0;
  if (bytes > 0 && (first || bytes >= kEnoughToMeasure)) {
    bytes_ = bytes_ * kForgetting + bytes;
    seconds_ = seconds_ * kForgetting + transfer;
  }
  if (seconds < kShort && !first) {
    const double rest = std::max(0.0, seconds - bytes / bandwidth());
    overhead_ += kOverheadFollow * (rest - overhead_);
  }
}

double LinkModel::bandwidth() const { return seconds_ > 0 && bytes_ > 0 ? bytes_ / seconds_ : kAssumedBandwidth; }

}  // namespace migrate
