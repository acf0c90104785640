#include <algorithm>

#include "pageserver/copying.h"
#include "pageserver/page_records.h"
#include "pageserver/worker_group.h"

namespace migrate {
namespace {

/// Handed to the sink in pieces that are still in the cache.
constexpr size_t kPieceBytes = 128 << 10;

/// One stream's thread.
class ReceiveWorker {
 public:
  ReceiveWorker(Stream& stream, uint64_t& sequence, PageSink& sink, PageCounters& counters, std::atomic<uint64_t>& left,
                const ReceiveLimits& limits)
      : stream_(stream),
        sequence_(sequence),
        sink_(sink),
        counters_(counters),
        left_(left),
        limits_(limits),
        piece_(kPieceBytes),
        packed_(0) {}

  void run() {
    std::byte header[kPageRecordSize];
    while (true) {
      if (!stream_.read_exact(header)) throw Disconnected(stream_.peer() + " left before it had sent all pages");
      const PageRecord record = decode_record(header, stream_.peer());
      if (record.kind == PageRecord::Kind::end) return acknowledge(record);
      if (record.kind == PageRecord::Kind::ack) throw corrupt("an acknowledgement from the sender");
      if (!limits_.codecs.contains(record.codec)) throw corrupt("pages in a codec that was not agreed upon");
      if (record.kind == PageRecord::Kind::zeros && !limits_.zeros) throw corrupt("a record of zeros");
      if (record.sequence != sequence_++) throw corrupt("a record is missing");
      take_from_limit(record.pages);
      totals_.add(header, record.pages);
      count_wire(kPageRecordSize);
      if (record.kind == PageRecord::Kind::zeros) {
        take_zeros(record);
      } else if (record.kind == PageRecord::Kind::packed) {
        receive_packed(record);
      } else {
        receive_pages(record);
      }
    }
  }

  const StreamTotals& totals() const { return totals_; }
  uint64_t wire_bytes() const { return wire_bytes_; }

 private:
  Corrupt corrupt(const char* why) const { return Corrupt("the page stream from " + stream_.peer(), why); }

  void take_from_limit(uint64_t pages) {
    uint64_t left = left_.load();
    do {
      if (left < pages) throw corrupt("more pages than announced");
    } while (!left_.compare_exchange_weak(left, left - pages));
  }

  void take_zeros(const PageRecord& record) {
    const size_t bytes = record.pages * kPageSize;
    piece_.reserve(bytes);
    const auto piece = piece_.first(bytes);
    std::ranges::fill(piece, std::byte{0});
    sink_.write(record.memory, record.address, piece);
    counters_.zero_pages.fetch_add(record.pages, std::memory_order_relaxed);
  }

  void receive_pages(const PageRecord& record) {
    uint64_t address = record.address;
    size_t left = record.pages * kPageSize;
    while (left > 0) {
      const auto piece = piece_.first(std::min(left, kPieceBytes));
      if (!stream_.read_exact(piece)) throw Disconnected(stream_.peer() + " left in the middle of pages");
      count_wire(piece.size());
      sink_.write(record.memory, address, piece);
      counters_.pages.fetch_add(piece.size() / kPageSize, std::memory_order_relaxed);
      address += piece.size();
      left -= piece.size();
    }
  }

  /// At most 1 MiB for a record's pages, and less for what they are packed to; checked before it is taken.
  void receive_packed(const PageRecord& record) {
    std::byte bytes[kPackedSizeBytes];
    if (!stream_.read_exact(bytes)) throw Disconnected(stream_.peer() + " left in the middle of pages");
    const size_t page_bytes = record.pages * kPageSize;
    const size_t size = decode_packed_size(bytes, page_bytes, stream_.peer());
    totals_.add_packed_size(size);
    packed_.reserve(size);
    piece_.reserve(page_bytes);
    const auto packed = packed_.first(size);
    const auto pages = piece_.first(page_bytes);
    if (!stream_.read_exact(packed)) throw Disconnected(stream_.peer() + " left in the middle of pages");
    count_wire(kPackedSizeBytes + size);
    if (const char* why = unpacker_.unpack(record.codec, packed, pages); why != nullptr) throw corrupt(why);
    sink_.write(record.memory, record.address, pages);
    counters_.pages.fetch_add(record.pages, std::memory_order_relaxed);
  }

  void count_wire(size_t bytes) {
    wire_bytes_ += bytes;
    counters_.wire_bytes.fetch_add(bytes, std::memory_order_relaxed);
  }

  void acknowledge(const PageRecord& end) {
    if (StreamTotals::in(end) != totals_) throw corrupt("the sender's totals differ from ours");
    PageRecord ack = end;
    ack.kind = PageRecord::Kind::ack;
    std::byte bytes[kPageRecordSize];
    encode_record(ack, bytes);
    count_wire(kPageRecordSize);  // of the end
    stream_.write(bytes);
  }

  Stream& stream_;
  uint64_t& sequence_;
  PageSink& sink_;
  PageCounters& counters_;
  std::atomic<uint64_t>& left_;
  const ReceiveLimits limits_;
  PageUnpacker unpacker_;
  PageBuffer piece_, packed_;
  uint64_t wire_bytes_ = 0;
  StreamTotals totals_;
};

}  // namespace

PageReceiver::PageReceiver(std::vector<std::unique_ptr<Stream>> streams, PageSink& sink, ReceiveLimits limits)
    : streams_(std::move(streams)), sequence_(streams_.size(), 0), sink_(sink), limits_(limits) {
  if (streams_.empty()) throw Error("receive pages: no stream is connected");
  for (auto& stream : streams_) stream->set_group_stop(&stop_);
}

PageReceiver::~PageReceiver() = default;

PageTotals PageReceiver::receive() {
  std::atomic<uint64_t> left{limits_.max_pages};
  std::vector<PageTotals> totals(streams_.size());
  run_workers(streams_, stop_, [&](size_t index) {
    ReceiveWorker worker(*streams_[index], sequence_[index], sink_, counters_, left, limits_);
    around_([&] { worker.run(); });
    totals[index] = {worker.totals().records, worker.totals().pages, 0, worker.wire_bytes()};
  });
  PageTotals sum;
  for (const PageTotals& t : totals) {
    sum.records += t.records;
    sum.pages += t.pages;
    sum.wire_bytes += t.wire_bytes;
  }
  return sum;
}

}  // namespace migrate
