// Times that something took: how many, how long, and quantiles, in memory that does not grow.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdint>

namespace migrate {

/// Buckets are an eighth of a power of two wide: a quantile is at most an eighth too large. A plain value.
class Latencies {
 public:
  void add(std::chrono::nanoseconds time) {
    const auto us = static_cast<uint64_t>(std::max<int64_t>(time.count(), 0)) / 1000;
    ++count_;
    sum_us_ += us;
    max_us_ = std::max(max_us_, us);
    if (time > kStall) stalls_us_ += us;
    ++buckets_[bucket_of(us)];
  }
  uint64_t count() const { return count_; }
  uint64_t sum_us() const { return sum_us_; }
  uint64_t max_us() const { return max_us_; }
  /// Such a part of all took at most so long; 0 if there were none.
  uint64_t quantile_us(double part) const {
    const auto rank = static_cast<uint64_t>(part * static_cast<double>(count_));
    uint64_t seen = 0;
    for (size_t i = 0; i < kBuckets; ++i) {
      seen += buckets_[i];
      if (seen > 0 && seen >= rank) return std::min(end_of(i), max_us_);
    }
    return max_us_;
  }
  /// What those that took longer than kStall took together.
  static constexpr std::chrono::milliseconds kStall{3};
  uint64_t stalls_us() const { return stalls_us_; }

 private:
  static constexpr unsigned kBits = 3, kMostPower = 40;
  static constexpr size_t kBuckets = (kMostPower - kBits + 2) << kBits;
  static size_t bucket_of(uint64_t us) {
    if (us < (1U << kBits)) return us;
    const auto power = std::min<unsigned>(std::bit_width(us) - 1, kMostPower);
    const uint64_t part = std::min<uint64_t>(us >> (power - kBits), (2U << kBits) - 1) - (1U << kBits);
    return (static_cast<size_t>(power - kBits + 1) << kBits) + part;
  }
  static uint64_t end_of(size_t bucket) {
    if (bucket < (1U << kBits)) return bucket;
    const unsigned power = static_cast<unsigned>(bucket >> kBits) - 1 + kBits;
    return (((bucket & ((1U << kBits) - 1)) + (1U << kBits) + 1) << (power - kBits)) - 1;
  }

  uint64_t count_ = 0, sum_us_ = 0, max_us_ = 0, stalls_us_ = 0;
  std::array<uint64_t, kBuckets> buckets_{};
};

}  // namespace migrate
