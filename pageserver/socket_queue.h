// What stands in a socket's buffer: which records, and since when.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>

namespace migrate {

/// Tells, of bytes that leave a socket, how many bytes of pages they carried.
class SocketQueue {
 public:
  using Clock = std::chrono::steady_clock;

  void sent(uint64_t wire, uint64_t raw, Clock::time_point when) {
    records_.push_back({wire, raw, when});
    wire_ += wire;
  }
  struct Left {
    uint64_t wire = 0, raw = 0;
  };
  /// So many bytes are in the buffer now.
  Left holds(uint64_t bytes) {
    Left left;
    while (wire_ > bytes) {
      Record& first = records_.front();
      const uint64_t part = std::min(first.wire, wire_ - bytes);
      const uint64_t raw = part == first.wire ? first.raw : first.raw * part / first.wire;
      left.wire += part;
      left.raw += raw;
      wire_ -= part;
      first.wire -= part;
      first.raw -= raw;
      if (first.wire == 0) records_.pop_front();
    }
    return left;
  }
  /// When the first of what is in the buffer was sent; `now` if nothing is.
  Clock::time_point oldest(Clock::time_point now) const { return records_.empty() ? now : records_.front().when; }

 private:
  struct Record {
    uint64_t wire, raw;
    Clock::time_point when;
  };
  std::deque<Record> records_;
  uint64_t wire_ = 0;
};

}  // namespace migrate
