// Puts page records on one stream: packed or raw, within the bandwidth limit, counted. For .cpp files of this folder
// and of lazypages/feed.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "pageserver/codec_chooser.h"
#include "pageserver/page_records.h"
#include "pageserver/page_stream.h"
#include "pageserver/rate_limiter.h"
#include "pageserver/socket_queue.h"

namespace migrate {

/// What the streams of a PageSender have in common.
struct SendShared {
  PageCounters& counters;
  const StopEvent& stop;
  RateLimiter limiter{};
  CodecChooser chooser{};
};

/// One a stream, for all passes. One thread at a time.
class RecordWriter {
 public:
  /// All must outlive this.
  RecordWriter(Stream& stream, SendShared& shared) : stream_(stream), shared_(shared) {}

  void begin_pass();
  /// Sends `pages`, which lie in a buffer that has kPageRecordSize bytes of room for a header before them. They may go
  /// out with what follows: the buffer is to stay as it is until flush().
  void send(MemoryId memory, uint64_t address, std::span<std::byte> pages);
  void flush();
  /// Pages of zeros, at most kMaxRecordPages. Only to a receiver with ReceiveLimits::zeros.
  void send_zeros(MemoryId memory, uint64_t address, uint32_t pages);
  /// Sends the end and waits for the receiver's totals.
  void finish_pass();
  const StreamTotals& totals() const { return totals_; }
  uint64_t wire_bytes() const { return wire_bytes_; }

 private:
  using Clock = std::chrono::steady_clock;
  /// Where the last record ended: for the chooser.
  struct Marks {
    Clock::time_point time;
    std::chrono::nanoseconds waited{0};
  };
  /// In the room before `pages`; returns both.
  std::span<std::byte> add_header(const PageRecord& record, std::span<std::byte> pages);
  void append(const PageRecord& record, std::span<std::byte> pages);
  std::span<std::byte> pack(PageRecord record, std::span<const std::byte> pages, const CodecChoice& choice);
  /// Returns how long the bandwidth limit made it wait.
  double write(std::span<const std::byte> bytes);
  bool measuring() const { return shared_.chooser.automatic() || shared_.limiter.rate() != 0; }
  void tell_cost(RecordCost cost, Clock::time_point now);

  Stream& stream_;
  SendShared& shared_;
  PagePacker packer_;
  std::vector<std::byte> packed_;
  std::span<std::byte> pending_;  ///< records in one piece, not written yet
  uint64_t sequence_ = 0;
  StreamTotals totals_;
  uint64_t wire_bytes_ = 0;
  Marks marks_;
  SocketQueue queue_;
};

/// Bytes a second that TCP found a connection to carry at best; 0: not a TCP connection, or nothing was sent yet.
double tcp_delivery_rate(int fd);

}  // namespace migrate
