#include "pageserver/rate_limiter.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>

#include "core/base/error.h"
#include "pageserver/stream.h"

namespace migrate {
namespace {

constexpr size_t kLeastPiece = 1024;

/// False: `stop` came first.
bool sleep_until(std::chrono::steady_clock::time_point time, const StopEvent& stop) {
  while (!stop.stopped()) {
    const auto left = std::chrono::nanoseconds(time - std::chrono::steady_clock::now()).count();
    if (left <= 0) return true;
    pollfd p{stop.fd(), POLLIN, 0};
    const timespec timeout{left / 1'000'000'000, left % 1'000'000'000};
    if (::ppoll(&p, 1, &timeout, nullptr) < 0 && errno != EINTR) throw Error("wait for", "the bandwidth limit", errno);
  }
  return false;
}

}  // namespace

void RateLimiter::set_rate(uint64_t bytes_per_second) {
  rate_ = bytes_per_second;
  next_ = {};
}

size_t RateLimiter::piece() const {
  if (rate_ == 0) return SIZE_MAX;
  return std::max<size_t>(kLeastPiece, rate_ * static_cast<uint64_t>(kBurst.count()) / 4000);
}

double RateLimiter::acquire(size_t bytes, const StopEvent& stop) {
  if (rate_ == 0) return 0;
  const Clock::time_point now = Clock::now();
  Clock::time_point turn;
  {
    const std::lock_guard lock(mutex_);
    next_ = std::max(next_, now - kBurst) +
            std::chrono::nanoseconds(std::llround(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate_)));
    turn = next_;
  }
  if (turn <= now) return 0;
  if (!sleep_until(turn, stop)) throw Cancelled("cancelled", "sending pages");
  return std::chrono::duration<double>(Clock::now() - now).count();
}

std::optional<uint64_t> parse_rate(std::string_view text) {
  double value = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
  std::string_view unit(end, static_cast<size_t>(last - end));
  if (unit.ends_with('B')) unit.remove_suffix(1);
  double factor = 1;
  if (!unit.empty()) {
    const bool binary = unit.size() == 2 && unit[1] == 'i';
    if (unit.size() > 1 && !binary) return std::nullopt;
    const size_t power = std::string_view("KMGT").find(unit[0] == 'k' ? 'K' : unit[0]);
    if (power == std::string_view::npos) return std::nullopt;
    factor = std::pow(binary ? 1024 : 1000, static_cast<double>(power + 1));
  }
  value *= factor;
  if (value < static_cast<double>(kLeastBandwidthLimit) || value > static_cast<double>(kMostBandwidthLimit))
    return std::nullopt;
  return static_cast<uint64_t>(value);
}

}  // namespace migrate
