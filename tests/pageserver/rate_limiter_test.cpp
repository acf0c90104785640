#include "pageserver/rate_limiter.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "testing.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;

TEST(RateLimits, Text) {
  EXPECT_EQ(parse_rate("200M"), 200'000'000u);
  EXPECT_EQ(parse_rate("1.5G"), 1'500'000'000u);
  EXPECT_EQ(parse_rate("1.5GB"), 1'500'000'000u);
  EXPECT_EQ(parse_rate("512Ki"), 512u << 10);
  EXPECT_EQ(parse_rate("512KiB"), 512u << 10);
  EXPECT_EQ(parse_rate("800k"), 800'000u);
  EXPECT_EQ(parse_rate("5000000"), 5'000'000u);
  for (const char* bad : {"", "M", "-5M", "0", "1", "1K", "5X", "5MM", "5Mi5", "1e9", "nan", "inf", "5 M", "2000T",
                          "200Mb", "200Mbit", "0x10000"})
    EXPECT_FALSE(parse_rate(bad)) << bad;
}

/// What four threads get through in pieces, in any stretch of time, is the rate and one burst.
TEST(RateLimits, SharedAndSmooth) {
  constexpr uint64_t kRate = 40'000'000;
  RateLimiter limiter;
  limiter.set_rate(kRate);
  ASSERT_LE(limiter.piece() * 4, kRate / 100);
  const StopEvent stop;
  std::mutex mutex;
  std::vector<std::pair<Clock::time_point, size_t>> granted;
  const auto began = Clock::now();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&] {
        for (int n = 0; n < 25; ++n) {
          limiter.acquire(limiter.piece(), stop);
          const std::lock_guard lock(mutex);
          granted.emplace_back(Clock::now(), limiter.piece());
        }
      });
  }
  const double total = static_cast<double>(100 * limiter.piece());
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  EXPECT_GE(seconds, total / kRate - 0.0101);
  // A thread may be late with what it was granted, so that only the whole can be bounded without guessing.
  std::sort(granted.begin(), granted.end());
  double so_far = 0;
  for (const auto& [time, bytes] : granted) {
    so_far += static_cast<double>(bytes);
    EXPECT_LE(so_far, (std::chrono::duration<double>(time - began).count() + 0.0101) * kRate);
  }
}

TEST(RateLimits, StopEndsTheWait) {
  RateLimiter limiter;
  limiter.set_rate(kLeastBandwidthLimit);
  StopEvent stop;
  auto waiting = std::async(std::launch::async, [&] { limiter.acquire(size_t{1} << 30, stop); });
  stop.trigger();
  EXPECT_THROW(waiting.get(), Cancelled);
}

TEST(RateLimits, NoneCostsNothing) {
  RateLimiter limiter;
  const StopEvent stop;
  EXPECT_EQ(limiter.piece(), SIZE_MAX);
  EXPECT_EQ(limiter.acquire(size_t{1} << 40, stop), 0);
}

}  // namespace
}  // namespace migrate
