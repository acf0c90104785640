#include "pageserver/page_records.h"

#include <algorithm>

#include "pageserver/codec.h"
#include "pageserver/frames.h"

namespace migrate {

void encode_record(const PageRecord& record, std::span<std::byte, kPageRecordSize> out) {
  Packer pack(out);
  pack.put(static_cast<uint8_t>(record.kind));
  if (record.kind != PageRecord::Kind::end && record.kind != PageRecord::Kind::ack) {
    pack.put(static_cast<uint8_t>(record.memory.kind)).put(static_cast<uint16_t>(record.codec)).put(record.pages);
    pack.put(record.memory.id).put(record.address).put(record.sequence);
  } else {
    pack.put(uint8_t{0}).put(uint16_t{0}).put(uint32_t{0});
    pack.put(record.total_records).put(record.total_pages).put(record.digest);
  }
}

PageRecord decode_record(std::span<const std::byte, kPageRecordSize> in, const std::string& from) {
  const auto corrupt = [&](const char* why) { return Corrupt("the page stream from " + from, why); };
  Unpacker unpack(in);
  PageRecord record;
  const auto kind = unpack.get<uint8_t>();
  const auto memory_kind = unpack.get<uint8_t>();
  const auto flags = unpack.get<uint16_t>();
  record.pages = unpack.get<uint32_t>();
  if (kind < 1 || kind > 5) throw corrupt("unknown kind of record");
  record.kind = static_cast<PageRecord::Kind>(kind);
  if (record.kind == PageRecord::Kind::packed) {
    if (flags != static_cast<uint16_t>(PageCodec::lz4) && flags != static_cast<uint16_t>(PageCodec::zstd))
      throw corrupt("unknown codec of a record");
    record.codec = static_cast<PageCodec>(flags);
  } else if (flags != 0) {
    throw corrupt("unknown flags in a record");
  }
  if (record.kind == PageRecord::Kind::end || record.kind == PageRecord::Kind::ack) {
    if (memory_kind != 0 || record.pages != 0) throw corrupt("totals with page fields");
    record.total_records = unpack.get<uint64_t>();
    record.total_pages = unpack.get<uint64_t>();
    record.digest = unpack.get<uint64_t>();
    return record;
  }
  if (memory_kind != 1 && memory_kind != 2) throw corrupt("unknown kind of memory");
  record.memory.kind = static_cast<MemoryId::Kind>(memory_kind);
  record.memory.id = unpack.get<uint64_t>();
  record.address = unpack.get<uint64_t>();
  record.sequence = unpack.get<uint64_t>();
  if (record.pages == 0 || record.pages > kMaxRecordPages) throw corrupt("a record's number of pages is out of bounds");
  if (record.address % kPageSize != 0) throw corrupt("an address is not at a page's start");
  if (record.address >= kMaxPageAddress || record.pages * kPageSize > kMaxPageAddress - record.address)
    throw corrupt("an address is out of bounds");
  return record;
}

void encode_packed_size(size_t size, std::span<std::byte, kPackedSizeBytes> out) {
  Packer(out).put(static_cast<uint32_t>(size));
}

size_t decode_packed_size(std::span<const std::byte, kPackedSizeBytes> in, size_t page_bytes, const std::string& from) {
  const size_t size = Unpacker(in).get<uint32_t>();
  if (size == 0 || size > packed_limit(page_bytes))
    throw Corrupt("the page stream from " + from, "the size of packed pages is out of bounds");
  return size;
}

namespace {

uint64_t mixed(uint64_t digest, uint64_t value) {
  digest = (digest ^ value) * 0x9e3779b97f4a7c15;
  return digest ^ digest >> 29;
}

}  // namespace

void StreamTotals::add(std::span<const std::byte, kPageRecordSize> header, uint32_t record_pages) {
  ++records;
  pages += record_pages;
  Unpacker unpack(header);
  for (size_t i = 0; i < kPageRecordSize / 8; ++i) digest = mixed(digest, unpack.get<uint64_t>());
}

void StreamTotals::add_packed_size(size_t size) { digest = mixed(digest, size); }

PageRecord StreamTotals::end() const {
  PageRecord record{.kind = PageRecord::Kind::end};
  record.total_records = records;
  record.total_pages = pages;
  record.digest = digest;
  return record;
}

void send_page_preface(Stream& stream, const PagePreface& preface, Deadline deadline) {
  std::byte bytes[kPagePrefaceSize] = {};
  Packer(bytes)
      .put(kPageMagic)
      .put(kPageVersion)
      .put(preface.index)
      .put(preface.count)
      .put(uint16_t{0})
      .put(uint32_t{0});
  std::copy(preface.session.begin(), preface.session.end(), bytes + 16);
  stream.write(bytes, deadline);
}

std::optional<PagePreface> read_page_preface(Stream& stream, Deadline deadline) {
  const auto corrupt = [&](const char* why) { return Corrupt("the page preface of " + stream.peer(), why); };
  std::byte bytes[kPagePrefaceSize];
  // A control channel's is shorter: its peer sends nothing more until it is answered.
  constexpr size_t kBegin = FrameChannel::kPrefaceSize;
  const auto begin = std::span(bytes).first(kBegin), rest = std::span(bytes).subspan(kBegin);
  if (!stream.read_exact(begin, deadline))
    throw Disconnected(stream.peer() + " ended the connection without a preface");
  Unpacker unpack(bytes);
  PagePreface preface;
  const auto magic = unpack.get<uint32_t>();
  if (magic == FrameChannel::kMagic) return {};
  if (magic != kPageMagic) throw corrupt("not a page stream");
  if (!stream.read_exact(rest, deadline)) throw corrupt("it is cut off");
  if (unpack.get<uint16_t>() != kPageVersion) throw corrupt("unknown version");
  preface.index = unpack.get<uint16_t>();
  preface.count = unpack.get<uint16_t>();
  if (unpack.get<uint16_t>() != 0 || unpack.get<uint32_t>() != 0) throw corrupt("unknown flags");
  if (preface.count == 0 || preface.count > kMaxPageStreams || preface.index >= preface.count)
    throw corrupt("stream number out of bounds");
  std::copy(bytes + 16, bytes + 32, preface.session.begin());
  return preface;
}

}  // namespace migrate
