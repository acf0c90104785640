// Inputs that stay meaningful when they are changed: a row of records {u8 kind, u32 id, u16 length, payload}, cut short
// wherever a length is too long. What a payload is, a target says; most are protobuf messages (wire_mutator.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace migrate::fuzz {

struct Record {
  uint8_t kind = 0;
  uint32_t id = 0;
  std::span<const std::byte> payload;
};

inline constexpr size_t kRecordHeader = 7;

inline std::vector<Record> records_of(std::span<const std::byte> input) {
  std::vector<Record> records;
  while (input.size() >= kRecordHeader) {
    Record r;
    uint16_t length;
    r.kind = std::to_integer<uint8_t>(input[0]);
    std::memcpy(&r.id, input.data() + 1, sizeof r.id);
    std::memcpy(&length, input.data() + 5, sizeof length);
    input = input.subspan(kRecordHeader);
    r.payload = input.first(std::min<size_t>(length, input.size()));
    input = input.subspan(r.payload.size());
    records.push_back(r);
  }
  return records;
}

inline void append_record(std::vector<std::byte>& out, uint8_t kind, uint32_t id, std::span<const std::byte> payload) {
  const auto length = static_cast<uint16_t>(std::min<size_t>(payload.size(), UINT16_MAX));
  out.push_back(std::byte{kind});
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<std::byte>(id >> shift));
  for (int shift = 0; shift < 16; shift += 8) out.push_back(static_cast<std::byte>(length >> shift));
  out.insert(out.end(), payload.begin(), payload.begin() + length);
}

}  // namespace migrate::fuzz
