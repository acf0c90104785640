#include <algorithm>
#include <cstring>

#include "pageserver/page_records.h"
#include "pageserver/worker_group.h"

namespace migrate {
namespace {

/// Read, encrypted and sent while they are in the core's cache (measured: 128 KiB costs a tenth less than 1 MiB).
constexpr uint64_t kItemPages = 32;
static_assert(kItemPages <= kMaxRecordPages);

/// Up to kItemPages pages of one source, starting `offset` pages into run `run`.
struct Item {
  const PageSource* source;
  size_t run;
  uint64_t offset;
};

std::vector<Item> items_of(const PageSource& source) {
  std::vector<Item> items;
  uint64_t room = 0;
  for (size_t r = 0; r < source.runs.size(); ++r) {
    uint64_t offset = 0;
    while (offset < source.runs[r].pages) {
      if (room == 0) {
        items.push_back({&source, r, offset});
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
std::vector<Item> interleave(std::span<const PageSource> sources) {
  std::vector<std::vector<Item>> lists;
  size_t longest = 0;
  for (const PageSource& source : sources) {
    lists.push_back(items_of(source));
    longest = std::max(longest, lists.back().size());
  }
  std::vector<Item> out;
  for (size_t i = 0; i < longest; ++i)
    for (const auto& list : lists)
      if (i < list.size()) out.push_back(list[i]);
  return out;
}

bool is_zero(const std::byte* page) {
  static constexpr std::byte kZeros[16] = {};
  return std::memcmp(page, kZeros, 16) == 0 && std::memcmp(page, page + 16, kPageSize - 16) == 0;
}

std::string memory_text(const MemoryId& memory) {
  return (memory.kind == MemoryId::Kind::task ? "task " : "shared memory object ") + std::to_string(memory.id);
}

/// One stream's thread.
class SendWorker {
 public:
  SendWorker(Stream& stream, uint64_t& sequence, PageCounters& counters)
      : stream_(stream), sequence_(sequence), counters_(counters), buffer_(kPageSize * (1 + kItemPages)) {}

  void send_item(const Item& item) {
    uint64_t room = kItemPages;
    uint64_t offset = item.offset;
    for (size_t r = item.run; r < item.source->runs.size() && room > 0; ++r, offset = 0) {
      const PageRun& run = item.source->runs[r];
      const uint64_t n = std::min(room, run.pages - offset);
      send_run(*item.source, run.address + offset * kPageSize, n, run.zero_ok);
      room -= n;
    }
  }

  void finish_pass() {
    std::byte bytes[kPageRecordSize];
    PageRecord end{.kind = PageRecord::Kind::end};
    end.total_records = totals_.records;
    end.total_pages = totals_.pages;
    end.digest = totals_.digest;
    encode_record(end, bytes);
    stream_.write(bytes);
    if (!stream_.read_exact(bytes)) throw Disconnected(stream_.peer() + " left before it had all pages");
    const PageRecord ack = decode_record(bytes, stream_.peer());
    if (ack.kind != PageRecord::Kind::ack || StreamTotals{ack.total_records, ack.total_pages, ack.digest} != totals_)
      throw Corrupt("the page stream to " + stream_.peer(), "the receiver's totals differ from ours");
  }

  const StreamTotals& totals() const { return totals_; }
  uint64_t zero_pages() const { return zero_pages_; }

 private:
  // The page in front of the data has room for the first record's header; a later record follows a page that was left
  // out, whose space takes its header: header and contents go out in one piece.
  std::byte* page(uint64_t index) { return buffer_.data() + kPageSize * (1 + index); }

  void send_run(const PageSource& source, uint64_t address, uint64_t pages, bool zero_ok) {
    const size_t size = pages * kPageSize;
    const std::string what = memory_text(source.memory);
    vanished_.assign(pages, false);
    if (source.may_vanish) {
      read_existing(source, address, pages, what);
    } else if (pread_full(source.fd.get(), {page(0), size}, address, what) != size) {
      throw Error("read pages of " + what + ": it ended meanwhile");
    }
    uint64_t i = 0;
    while (i < pages) {
      if (vanished_[i]) {
        ++i;
        continue;
      }
      if (zero_ok && is_zero(page(i))) {
        ++i;
        ++zero_pages_;
        counters_.zero_pages.fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      uint64_t end = i + 1;
      while (end < pages && !vanished_[end] && !(zero_ok && is_zero(page(end)))) ++end;
      send_record(source.memory, address + i * kPageSize, i, static_cast<uint32_t>(end - i));
      i = end;
    }
  }

  /// Reads what a running task still has; marks the rest as vanished.
  void read_existing(const PageSource& source, uint64_t address, uint64_t pages, const std::string& what) {
    for (uint64_t i = 0; i < pages;) {
      const ssize_t n =
          ::pread(source.fd.get(), page(i), (pages - i) * kPageSize, static_cast<off_t>(address + i * kPageSize));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno != EIO && errno != EFAULT) throw Error("read", what, errno);
      if (n == 0) {  // of a memory that its task has left
        std::fill(vanished_.begin() + static_cast<std::ptrdiff_t>(i), vanished_.end(), true);
        return;
      }
      const uint64_t whole = n < 0 ? 0 : static_cast<uint64_t>(n) / kPageSize;
      i += whole;
      if (whole == 0) vanished_[i++] = true;
    }
  }

  void send_record(MemoryId memory, uint64_t address, uint64_t index, uint32_t pages) {
    PageRecord record{.kind = PageRecord::Kind::pages, .memory = memory, .address = address, .pages = pages};
    record.sequence = sequence_++;
    const std::span<std::byte, kPageRecordSize> header(page(index) - kPageRecordSize, kPageRecordSize);
    encode_record(record, header);
    totals_.add(header, pages);
    stream_.write({header.data(), kPageRecordSize + pages * kPageSize});
    counters_.pages.fetch_add(pages, std::memory_order_relaxed);
  }

  Stream& stream_;
  uint64_t& sequence_;
  PageCounters& counters_;
  std::vector<std::byte> buffer_;
  std::vector<bool> vanished_;  ///< of the run in buffer_
  StreamTotals totals_;
  uint64_t zero_pages_ = 0;
};

}  // namespace

PageSender::PageSender(std::vector<std::unique_ptr<Stream>> streams)
    : streams_(std::move(streams)), sequence_(streams_.size(), 0) {
  if (streams_.empty()) throw Error("send pages: no stream is connected");
  for (auto& stream : streams_) stream->set_group_stop(&stop_);
}

PageSender::~PageSender() = default;

PageTotals PageSender::send(std::span<const PageSource> sources) {
  const std::vector<Item> items = interleave(sources);
  std::atomic<size_t> next{0};
  std::vector<PageTotals> totals(streams_.size());
  run_workers(streams_, stop_, [&](size_t index) {
    SendWorker worker(*streams_[index], sequence_[index], counters_);
    for (size_t i = next++; i < items.size(); i = next++) {
      if (stop_.stopped()) throw Cancelled("cancelled", "sending pages");
      worker.send_item(items[i]);
    }
    worker.finish_pass();
    totals[index] = {worker.totals().records, worker.totals().pages, worker.zero_pages()};
  });
  PageTotals sum;
  for (const PageTotals& t : totals) {
    sum.records += t.records;
    sum.pages += t.pages;
    sum.zero_pages += t.zero_pages;
  }
  return sum;
}

void PageSender::finish() {
  for (auto& stream : streams_) stream->finish();
}

}  // namespace migrate
