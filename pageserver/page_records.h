// The bytes of page streams: preface and records. README.md shows the layout. For .cpp files of this folder and of
// lazypages/feed, and tests.
#pragma once

#include <cstdint>
#include <span>

#include "core/memory/page_io.h"
#include "pageserver/page_codec.h"
#include "pageserver/page_stream.h"

namespace migrate {

inline constexpr uint32_t kPageMagic = 0x5047494d;  // "MIGP"
inline constexpr uint16_t kPageVersion = 1;
inline constexpr size_t kPagePrefaceSize = 32;
inline constexpr size_t kPageRecordSize = 32;
/// The size of packed pages, between their record's header and them.
inline constexpr size_t kPackedSizeBytes = 4;
/// Packed pages are smaller than the pages by at least this part; else they go raw.
constexpr size_t packed_limit(size_t page_bytes) { return page_bytes - page_bytes / 16; }
/// User addresses end below 2^56 also with five-level page tables; offsets in shared objects stay below it as well.
inline constexpr uint64_t kMaxPageAddress = uint64_t{1} << 56;

struct PageRecord {
  enum class Kind : uint8_t { pages = 1, end = 2, ack = 3, packed = 4, zeros = 5 } kind = Kind::pages;
  // pages, packed, zeros
  MemoryId memory;
  uint64_t address = 0;
  uint32_t pages = 0;
  uint64_t sequence = 0;
  PageCodec codec = PageCodec::raw;  ///< packed
  // end, ack: totals of this stream in this pass
  uint64_t total_records = 0;
  uint64_t total_pages = 0;
  uint64_t digest = 0;
};

void encode_record(const PageRecord& record, std::span<std::byte, kPageRecordSize> out);
/// Throws Corrupt (naming `from`) on anything that encode_record cannot have made from sane values.
PageRecord decode_record(std::span<const std::byte, kPageRecordSize> in, const std::string& from);

void encode_packed_size(size_t size, std::span<std::byte, kPackedSizeBytes> out);
/// Throws Corrupt if `page_bytes` of pages cannot be packed to that size.
size_t decode_packed_size(std::span<const std::byte, kPackedSizeBytes> in, size_t page_bytes, const std::string& from);

/// Totals of one stream in one pass; the digest covers every byte of the headers and the sizes of packed pages.
struct StreamTotals {
  uint64_t records = 0;
  uint64_t pages = 0;
  uint64_t digest = 0;
  void add(std::span<const std::byte, kPageRecordSize> header, uint32_t record_pages);
  void add_packed_size(size_t size);
  /// Of an end or its acknowledgement.
  static StreamTotals in(const PageRecord& record) { return {record.total_records, record.total_pages, record.digest}; }
  /// The record that ends the pass of such a stream.
  PageRecord end() const;
  bool operator==(const StreamTotals&) const = default;
};

}  // namespace migrate
