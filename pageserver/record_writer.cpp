#include "pageserver/record_writer.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstddef>

namespace migrate {
namespace {

constexpr size_t kPackedHeader = kPageRecordSize + kPackedSizeBytes;

double seconds(std::chrono::nanoseconds time) { return std::chrono::duration<double>(time).count(); }

/// Bytes that are in the socket's buffer or on their way.
uint64_t queued_in(int fd) {
  int bytes = 0;
  return ::ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<uint64_t>(bytes) : 0;
}

}  // namespace

double tcp_delivery_rate(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return 0;
  return size >= offsetof(tcp_info, tcpi_delivery_rate) + sizeof info.tcpi_delivery_rate
             ? static_cast<double>(info.tcpi_delivery_rate)
             : 0;
}

void RecordWriter::begin_pass() {
  totals_ = {};
  pending_ = {};
  wire_bytes_ = 0;
  if (!measuring()) return;
  marks_ = {Clock::now(), stream_.waited_to_write()};
}

void RecordWriter::send(MemoryId memory, uint64_t address, std::span<std::byte> pages) {
  PageRecord record{.memory = memory, .address = address, .pages = static_cast<uint32_t>(pages.size() / kPageSize)};
  record.sequence = sequence_++;
  const bool measure = measuring();
  RecordCost cost{.tried = shared_.chooser.next(), .raw = pages.size(), .packed = pages.size()};
  if (!measure && cost.tried.codec == PageCodec::raw) return append(record, pages);
  flush();
  Clock::time_point began, packed;
  if (measure) cost.read = seconds((began = Clock::now()) - marks_.time);
  std::span<std::byte> bytes;
  if (cost.tried.codec != PageCodec::raw) bytes = pack(record, pages, cost.tried);
  if (measure) cost.pack = seconds((packed = Clock::now()) - began);
  if (!bytes.empty()) {
    cost.packed = bytes.size() - kPackedHeader;
  } else {
    bytes = add_header(record, pages);
  }
  cost.wire = bytes.size();
  cost.limit = write(bytes);
  shared_.counters.pages.fetch_add(record.pages, std::memory_order_relaxed);
  if (!measure) return;
  const Clock::time_point now = Clock::now();
  cost.wait = seconds(stream_.waited_to_write() - marks_.waited);
  cost.send = std::max(0.0, seconds(now - packed) - cost.wait - cost.limit);
  tell_cost(cost, now);
}

std::span<std::byte> RecordWriter::add_header(const PageRecord& record, std::span<std::byte> pages) {
  const std::span<std::byte, kPageRecordSize> header(pages.data() - kPageRecordSize, kPageRecordSize);
  encode_record(record, header);
  totals_.add(header, record.pages);
  return {header.data(), kPageRecordSize + pages.size()};
}

/// Scattered pages go out many at a time: what a TLS record and a system call cost would be paid for each.
void RecordWriter::append(const PageRecord& record, std::span<std::byte> pages) {
  const std::span<std::byte> bytes = add_header(record, pages);
  if (!pending_.empty() && pending_.data() + pending_.size() != bytes.data()) flush();
  pending_ = pending_.empty() ? bytes : std::span(pending_.data(), pending_.size() + bytes.size());
  shared_.counters.pages.fetch_add(record.pages, std::memory_order_relaxed);
}

void RecordWriter::flush() {
  if (pending_.empty()) return;
  write(pending_);
  pending_ = {};
}

void RecordWriter::send_zeros(MemoryId memory, uint64_t address, uint32_t pages) {
  flush();
  std::byte header[kPageRecordSize];
  encode_record(
      {.kind = PageRecord::Kind::zeros, .memory = memory, .address = address, .pages = pages, .sequence = sequence_++},
      header);
  totals_.add(header, pages);
  write(header);
  shared_.counters.zero_pages.fetch_add(pages, std::memory_order_relaxed);
}

std::span<std::byte> RecordWriter::pack(PageRecord record, std::span<const std::byte> pages,
                                        const CodecChoice& choice) {
  packed_.resize(std::max(packed_.size(), kPackedHeader + packed_limit(pages.size())));
  const std::span<std::byte> all(packed_);
  const size_t size = packer_.pack(choice, pages, all.subspan(kPackedHeader, packed_limit(pages.size())));
  if (size == 0) return {};
  record.kind = PageRecord::Kind::packed;
  record.codec = choice.codec;
  encode_record(record, all.first<kPageRecordSize>());
  encode_packed_size(size, all.subspan<kPageRecordSize, kPackedSizeBytes>());
  totals_.add(all.first<kPageRecordSize>(), record.pages);
  totals_.add_packed_size(size);
  return all.first(kPackedHeader + size);
}

double RecordWriter::write(std::span<const std::byte> bytes) {
  const size_t piece = shared_.limiter.piece();
  double waited = 0;
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(piece, bytes.size()));
    waited += shared_.limiter.acquire(part.size(), shared_.stop);
    stream_.write(part);
    wire_bytes_ += part.size();
    shared_.counters.wire_bytes.fetch_add(part.size(), std::memory_order_relaxed);
    bytes = bytes.subspan(part.size());
  }
  return waited;
}

void RecordWriter::tell_cost(RecordCost cost, Clock::time_point now) {
  if (cost.wire > 0) queue_.sent(cost.wire, cost.raw, now);
  cost.left = queue_.holds(queued_in(stream_.fd()));
  cost.oldest = queue_.oldest(now);
  shared_.chooser.add(cost, now);
  marks_ = {now, stream_.waited_to_write()};
}

void RecordWriter::finish_pass() {
  flush();
  std::byte bytes[kPageRecordSize];
  encode_record(totals_.end(), bytes);
  write(bytes);
  if (!stream_.read_exact(bytes)) throw Disconnected(stream_.peer() + " left before it had all pages");
  const PageRecord ack = decode_record(bytes, stream_.peer());
  if (ack.kind != PageRecord::Kind::ack || StreamTotals::in(ack) != totals_)
    throw Corrupt("the page stream to " + stream_.peer(), "the receiver's totals differ from ours");
  // The wait until all was there belongs to what the link took.
  if (measuring()) tell_cost({.wait = seconds(Clock::now() - marks_.time)}, Clock::now());
}

}  // namespace migrate
