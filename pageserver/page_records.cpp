#include "pageserver/page_records.h"

#include <algorithm>

#include "pageserver/codec.h"

namespace migrate {

void encode_record(const PageRecord& record, std::span<std::byte, kPageRecordSize> out) {
  Packer pack(out);
  pack.put(static_cast<uint8_t>(record.kind));
  if (record.kind == PageRecord::Kind::pages) {
    pack.put(static_cast<uint8_t>(record.memory.kind)).put(uint16_t{0}).put(record.pages);
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
  if (kind < 1 || kind > 3) throw corrupt("unknown kind of record");
  if (flags != 0) throw corrupt("unknown flags in a record");
  record.kind = static_cast<PageRecord::Kind>(kind);
  if (record.kind != PageRecord::Kind::pages) {
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

void StreamTotals::add(std::span<const std::byte, kPageRecordSize> header, uint32_t record_pages) {
  ++records;
  pages += record_pages;
  Unpacker unpack(header);
  for (size_t i = 0; i < kPageRecordSize / 8; ++i) {
    digest = (digest ^ unpack.get<uint64_t>()) * 0x9e3779b97f4a7c15;
    digest ^= digest >> 29;
  }
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

PagePreface read_page_preface(Stream& stream, Deadline deadline) {
  const auto corrupt = [&](const char* why) { return Corrupt("the page preface of " + stream.peer(), why); };
  std::byte bytes[kPagePrefaceSize];
  if (!stream.read_exact(bytes, deadline))
    throw Disconnected(stream.peer() + " ended the connection without a preface");
  Unpacker unpack(bytes);
  PagePreface preface;
  if (unpack.get<uint32_t>() != kPageMagic) throw corrupt("not a page stream");
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
