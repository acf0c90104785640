// Pages over N parallel streams. Byte layout: pageserver/README.md.
//
// One *pass* carries a set of pages: the sender calls send(), the receiver receive(); both return when every page of
// the pass has arrived and was written to the sink (each stream's END record is acknowledged with the receiver's
// totals). The same streams carry any number of passes (pre-copy rounds), one after the other.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/memory/page_io.h"
#include "pageserver/codec_chooser.h"
#include "pageserver/page_codec.h"
#include "pageserver/stream.h"

namespace migrate {

using SessionId = std::array<std::byte, 16>;

/// Says to which session a fresh connection belongs and which of its page streams it is.
struct PagePreface {
  SessionId session{};
  uint16_t index = 0;
  uint16_t count = 1;  ///< 1..kMaxPageStreams
};
inline constexpr uint16_t kMaxPageStreams = 64;
inline constexpr uint32_t kMaxRecordPages = 256;

/// The client of the page connection sends; the server reads. nullopt: a control channel's preface came (FrameChannel),
/// and was read. Corrupt on anything else.
void send_page_preface(Stream& stream, const PagePreface& preface, Deadline deadline);
std::optional<PagePreface> read_page_preface(Stream& stream, Deadline deadline);

/// What one pass moved.
struct PageTotals {
  uint64_t records = 0;
  uint64_t pages = 0;       ///< sent with contents
  uint64_t zero_pages = 0;  ///< left out because they read as zero (known to the sender only)
  uint64_t wire_bytes = 0;  ///< records with headers and, if packed, packed pages; before TLS
  auto operator<=>(const PageTotals&) const = default;
};

/// Running figures, readable by any thread while a pass runs.
struct PageCounters {
  std::atomic<uint64_t> pages{0};       ///< contents sent or received
  std::atomic<uint64_t> zero_pages{0};  ///< looked at and left out, or without contents
  std::atomic<uint64_t> wire_bytes{0};  ///< as in PageTotals
  uint64_t bytes() const { return pages.load(std::memory_order_relaxed) * kPageSize; }
};

class RecordWriter;
struct SendShared;

/// Sends pages; owns its streams. One thread calls send() at a time; cancel(), counters() and the functions on
/// compression from any.
class PageSender {
 public:
  explicit PageSender(std::vector<std::unique_ptr<Stream>> streams);
  ~PageSender();
  /// Reads all runs of all sources and sends them over all streams, a thread each; memories take turns, 32 pages each.
  /// Returns when the receiver has acknowledged everything. Any failure (the task is gone, a stream was cut, cancel())
  /// stops all threads and is thrown once; the streams are then unusable.
  PageTotals send(std::span<const PageSource> sources);
  void cancel() noexcept { stop_.trigger(); }
  const PageCounters& counters() const { return counters_; }
  /// Says goodbye on all streams.
  void finish();
  size_t streams() const { return streams_.size(); }

  /// What the receiver unpacks is `allowed`. Before the first pass; without it pages go raw.
  void set_compression(const Compression& wanted, CodecSet allowed);
  CodecChoice codec() const;
  /// What was chosen since the last call.
  std::vector<CodecChange> take_codec_changes();
  /// Bytes a second over all streams, as in PageTotals::wire_bytes; 0: no limit. Between passes.
  void set_bandwidth_limit(uint64_t bytes_per_second);
  /// Bytes of pages a second that would go through without the bandwidth limit, from what reading, packing and sending
  /// took and from what TCP measured; 0: nothing known yet.
  double unlimited_rate() const;

 private:
  /// A stream's part of what TCP found the link to carry at best; a burst of one stream has the link for itself.
  double link_rate() const;
  std::vector<std::unique_ptr<Stream>> streams_;
  PageCounters counters_;
  StopEvent stop_;
  std::unique_ptr<SendShared> shared_;
  std::vector<std::unique_ptr<RecordWriter>> writers_;  ///< one a stream
};

struct ReceiveLimits {
  uint64_t max_pages = UINT64_MAX;  ///< in one pass, over all streams; more is Corrupt
  CodecSet codecs;                  ///< that were agreed upon; records in others are Corrupt
  bool zeros = false;               ///< records of zeros may come; else they are Corrupt
};

/// Receives pages; owns its streams. Like PageSender. The sink is called by one thread a stream, at the same time, for
/// different pages; it must refuse memories and addresses that it does not know (records are checked for form only).
class PageReceiver {
 public:
  PageReceiver(std::vector<std::unique_ptr<Stream>> streams, PageSink& sink, ReceiveLimits limits = {});
  ~PageReceiver();
  /// One pass. Throws Corrupt, Disconnected, TimedOut, Cancelled, or what the sink threw (first error of any thread).
  /// Nothing is acknowledged after a failure.
  PageTotals receive();
  void cancel() noexcept { stop_.trigger(); }
  const PageCounters& counters() const { return counters_; }
  /// Called around all that a stream's thread does in a pass; it calls what it is given. Before receive().
  using Around = std::function<void(const std::function<void()>& work)>;
  void set_around(Around around) { around_ = std::move(around); }

 private:
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<uint64_t> sequence_;
  Around around_ = [](const std::function<void()>& work) { work(); };
  PageSink& sink_;
  ReceiveLimits limits_;
  PageCounters counters_;
  StopEvent stop_;
};

}  // namespace migrate
