#include <algorithm>
#include <cstring>

#include "pageserver/copying.h"
#include "pageserver/page_reader.h"
#include "pageserver/record_writer.h"
#include "pageserver/worker_group.h"

namespace migrate {
namespace {

/// Read, encrypted and sent while they are in the core's cache (measured: 1 MiB costs a tenth more). One less than a
/// power of two: with their header they fill TLS records of 16 KiB, and leave no small one over.
constexpr uint64_t kItemPages = 63;
static_assert(kItemPages <= kMaxRecordPages);

/// Up to kItemPages pages of one source, starting `offset` pages into run `run`.
struct Item {
  const PageSource* source;
  const PageReader* reader;
  size_t run;
  uint64_t offset;
};

std::vector<Item> items_of(const PageSource& source, const PageReader& reader) {
  std::vector<Item> items;
  uint64_t room = 0;
  for (size_t r = 0; r < source.runs.size(); ++r) {
    uint64_t offset = 0;
    while (offset < source.runs[r].pages) {
      if (room == 0) {
        items.push_back({&source, &reader, r, offset});
        room = kItemPages;
      }
      const uint64_t n = std::min(room, source.runs[r].pages - offset);
      offset += n;
      room -= n;
    }
  }
  return items;
}

/// Memories take turns, so that their receivers fill at the same time.
std::vector<Item> interleave(std::span<const PageSource> sources, std::span<const PageReader> readers) {
  std::vector<std::vector<Item>> lists;
  size_t longest = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    lists.push_back(items_of(sources[i], readers[i]));
    longest = std::max(longest, lists.back().size());
  }
  std::vector<Item> out;
  for (size_t i = 0; i < longest; ++i)
    for (const auto& list : lists)
      if (i < list.size()) out.push_back(list[i]);
  return out;
}

/// One stream's thread.
class SendWorker {
 public:
  SendWorker(RecordWriter& writer, PageCounters& counters)
      : writer_(writer), counters_(counters), buffer_(kPageSize + (kPageSize + kPageRecordSize) * kItemPages) {}

  void send_item(const Item& item) {
    // Pages of the first run are aligned, which makes reading a long one cheaper.
    std::byte* at = buffer_.data() + kPageSize - kPageRecordSize;
    uint64_t room = kItemPages;
    uint64_t offset = item.offset;
    for (size_t r = item.run; r < item.source->runs.size() && room > 0; ++r, offset = 0) {
      const PageRun& run = item.source->runs[r];
      const uint64_t n = std::min(room, run.pages - offset);
      const std::span pages(at + kPageRecordSize, n * kPageSize);
      send_run(item, {run.address + offset * kPageSize, n, run.zero_ok}, pages);
      at = pages.data() + pages.size();
      room -= n;
    }
    writer_.flush();
  }

  uint64_t zero_pages() const { return zero_pages_; }

 private:
  /// Reads a run into `buffer`, and hands it to the writer. In front of `buffer` there is room for the first record's
  /// header; a later record follows a page that was left out, whose space takes its header: header and contents go out
  /// in one piece, and so do records that follow each other in the buffer.
  void send_run(const Item& item, PageRun run, std::span<std::byte> buffer) {
    if (item.source->may_vanish) {
      item.reader->read_existing(run.address, buffer, vanished_);
    } else {
      if (!item.reader->read(run.address, buffer))
        throw Error("read pages of " + name_of(item.source->memory) + ": it has ended meanwhile");
      vanished_.assign(run.pages, false);
    }
    const auto page = [&](uint64_t i) { return buffer.data() + i * kPageSize; };
    uint64_t i = 0;
    while (i < run.pages) {
      if (vanished_[i]) {
        ++i;
        continue;
      }
      if (run.zero_ok && is_zero_page(page(i))) {
        ++i;
        ++zero_pages_;
        counters_.zero_pages.fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      uint64_t end = i + 1;
      while (end < run.pages && !vanished_[end] && !(run.zero_ok && is_zero_page(page(end)))) ++end;
      writer_.send(item.source->memory, run.address + i * kPageSize, {page(i), (end - i) * kPageSize});
      i = end;
    }
  }

  RecordWriter& writer_;
  PageCounters& counters_;
  PageBuffer buffer_;
  std::vector<bool> vanished_;  ///< of the run in buffer_
  uint64_t zero_pages_ = 0;
};

}  // namespace

PageSender::PageSender(std::vector<std::unique_ptr<Stream>> streams)
    : streams_(std::move(streams)), shared_(new SendShared{.counters = counters_, .stop = stop_}) {
  if (streams_.empty()) throw Error("send pages: no stream is connected");
  for (auto& stream : streams_) {
    stream->set_group_stop(&stop_);
    writers_.push_back(std::make_unique<RecordWriter>(*stream, *shared_));
  }
}

PageSender::~PageSender() = default;

PageTotals PageSender::send(std::span<const PageSource> sources) {
  const std::vector<PageReader> readers(sources.begin(), sources.end());
  const std::vector<Item> items = interleave(sources, readers);
  std::atomic<size_t> next{0};
  std::vector<PageTotals> totals(streams_.size());
  run_workers(streams_, stop_, [&](size_t index) {
    RecordWriter& writer = *writers_[index];
    writer.begin_pass();
    SendWorker worker(writer, counters_);
    for (size_t i = next++; i < items.size(); i = next++) {
      if (stop_.stopped()) throw Cancelled("cancelled", "sending pages");
      worker.send_item(items[i]);
    }
    writer.finish_pass();
    totals[index] = {writer.totals().records, writer.totals().pages, worker.zero_pages(), writer.wire_bytes()};
  });
  PageTotals sum;
  for (const PageTotals& t : totals) {
    sum.records += t.records;
    sum.pages += t.pages;
    sum.zero_pages += t.zero_pages;
    sum.wire_bytes += t.wire_bytes;
  }
  return sum;
}

void PageSender::finish() {
  for (auto& stream : streams_) stream->finish();
}

void PageSender::set_compression(const Compression& wanted, CodecSet allowed) {
  shared_->chooser.configure(wanted, allowed);
}

CodecChoice PageSender::codec() const { return shared_->chooser.current(); }

std::vector<CodecChange> PageSender::take_codec_changes() { return shared_->chooser.take_changes(); }

double PageSender::link_rate() const {
  double rate = 0;
  for (const auto& stream : streams_) rate = std::max(rate, tcp_delivery_rate(stream->fd()));
  return rate / static_cast<double>(streams_.size());
}

void PageSender::set_bandwidth_limit(uint64_t bytes_per_second) {
  const bool lifted = bytes_per_second == 0 && shared_->limiter.rate() != 0;
  shared_->limiter.set_rate(bytes_per_second);
  if (lifted) shared_->chooser.set_link(link_rate());
}

double PageSender::unlimited_rate() const {
  return shared_->chooser.rate_at(link_rate()) * static_cast<double>(streams_.size());
}

}  // namespace migrate
