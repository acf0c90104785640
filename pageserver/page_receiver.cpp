#include <algorithm>

#include "pageserver/page_records.h"
#include "pageserver/worker_group.h"

namespace migrate {
namespace {

/// Handed to the sink in pieces that are still in the cache.
constexpr size_t kPieceBytes = 128 << 10;

/// One stream's thread.
class ReceiveWorker {
 public:
  ReceiveWorker(Stream& stream, uint64_t& sequence, PageSink& sink, PageCounters& counters, std::atomic<uint64_t>& left)
      : stream_(stream), sequence_(sequence), sink_(sink), counters_(counters), left_(left), piece_(kPieceBytes) {}

  void run() {
    std::byte header[kPageRecordSize];
    while (true) {
      if (!stream_.read_exact(header)) throw Disconnected(stream_.peer() + " left before it had sent all pages");
      const PageRecord record = decode_record(header, stream_.peer());
      if (record.kind == PageRecord::Kind::end) return acknowledge(record);
      if (record.kind != PageRecord::Kind::pages) throw corrupt("an acknowledgement from the sender");
      if (record.sequence != sequence_++) throw corrupt("a record is missing");
      take_from_limit(record.pages);
      totals_.add(header, record.pages);
      receive_pages(record);
    }
  }

  const StreamTotals& totals() const { return totals_; }

 private:
  Corrupt corrupt(const char* why) const { return Corrupt("the page stream from " + stream_.peer(), why); }

  void take_from_limit(uint64_t pages) {
    uint64_t left = left_.load();
    do {
      if (left < pages) throw corrupt("more pages than announced");
    } while (!left_.compare_exchange_weak(left, left - pages));
  }

  void receive_pages(const PageRecord& record) {
    uint64_t address = record.address;
    size_t left = record.pages * kPageSize;
    while (left > 0) {
      const auto piece = std::span(piece_).first(std::min(left, kPieceBytes));
      if (!stream_.read_exact(piece)) throw Disconnected(stream_.peer() + " left in the middle of pages");
      sink_.write(record.memory, address, piece);
      counters_.pages.fetch_add(piece.size() / kPageSize, std::memory_order_relaxed);
      address += piece.size();
      left -= piece.size();
    }
  }

  void acknowledge(const PageRecord& end) {
    if (StreamTotals{end.total_records, end.total_pages, end.digest} != totals_)
      throw corrupt("the sender's totals differ from ours");
    PageRecord ack = end;
    ack.kind = PageRecord::Kind::ack;
    std::byte bytes[kPageRecordSize];
    encode_record(ack, bytes);
    stream_.write(bytes);
  }

  Stream& stream_;
  uint64_t& sequence_;
  PageSink& sink_;
  PageCounters& counters_;
  std::atomic<uint64_t>& left_;
  std::vector<std::byte> piece_;
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
    ReceiveWorker worker(*streams_[index], sequence_[index], sink_, counters_, left);
    worker.run();
    totals[index] = {worker.totals().records, worker.totals().pages, 0};
  });
  PageTotals sum;
  for (const PageTotals& t : totals) {
    sum.records += t.records;
    sum.pages += t.pages;
  }
  return sum;
}

}  // namespace migrate
