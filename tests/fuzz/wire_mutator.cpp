#include "wire_mutator.h"

#include <algorithm>

#include "records.h"

namespace migrate::fuzz {
namespace {

constexpr uint32_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;
constexpr int kDeepest = 6;

struct Field {
  uint32_t number = 0, type = 0;
  uint64_t value = 0;
  Bytes bytes;
};

bool take_varint(std::span<const std::byte>& in, uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 64 && !in.empty(); shift += 7) {
    const auto b = std::to_integer<uint64_t>(in.front());
    in = in.subspan(1);
    value |= (b & 0x7f) << shift;
    if ((b & 0x80) == 0) return true;
  }
  return false;
}

void put_varint(Bytes& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::byte>(value | 0x80));
  out.push_back(static_cast<std::byte>(value));
}

std::optional<std::vector<Field>> fields_of(std::span<const std::byte> in) {
  std::vector<Field> fields;
  while (!in.empty()) {
    uint64_t tag;
    if (!take_varint(in, tag) || tag >> 3 == 0 || tag >> 3 > (1 << 16)) return {};
    Field f{static_cast<uint32_t>(tag >> 3), static_cast<uint32_t>(tag & 7), 0, {}};
    size_t size = f.type == kFixed64 ? 8 : f.type == kFixed32 ? 4 : 0;
    if (f.type == kVarint || f.type == kBytes) {
      if (!take_varint(in, f.value)) return {};
      if (f.type == kBytes) size = f.value;
    } else if (size == 0) {
      return {};
    }
    if (size > in.size()) return {};
    f.bytes.assign(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(size));
    in = in.subspan(size);
    fields.push_back(std::move(f));
  }
  return fields;
}

Bytes to_bytes(const std::vector<Field>& fields) {
  Bytes out;
  for (const Field& f : fields) {
    put_varint(out, uint64_t{f.number} << 3 | f.type);
    if (f.type == kVarint) put_varint(out, f.value);
    if (f.type == kBytes) put_varint(out, f.bytes.size());
    out.insert(out.end(), f.bytes.begin(), f.bytes.end());
  }
  return out;
}

void change_bytes(Bytes& bytes, Random& random) {
  if (bytes.empty() || random() % 8 == 0) {
    bytes.resize(random() % 64, static_cast<std::byte>(random()));
    return;
  }
  const size_t at = random() % bytes.size();
  switch (random() % 3) {
    case 0:
      bytes[at] ^= static_cast<std::byte>(1U << random() % 8);
      break;
    case 1:
      bytes[at] = std::array{std::byte{0}, std::byte{'/'}, std::byte{'.'}, std::byte{0xff}}[random() % 4];
      break;
    default:
      bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

}  // namespace

uint64_t interesting_number(uint64_t now, Random& random) {
  constexpr std::array<uint64_t, 20> kNumbers{0,          1,          2,          7,           0x7f,
                                              0xfff,      0x1000,     0xffff,     0x100000,    0x400000,
                                              0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 1ull << 47,
                                              1ull << 62, INT64_MAX,  1ull << 63, ~4095ull,    ~0ull};
  switch (random() % 4) {
    case 0:
      return now + random() % 5 - 2;
    case 1:
      return now ^ uint64_t { 1 } << random() % 64;
    default:
      return kNumbers[random() % kNumbers.size()];
  }
}

std::optional<Bytes> mutate_wire(std::span<const std::byte> message, Random& random, int depth) {
  std::optional<std::vector<Field>> fields = fields_of(message);
  if (!fields || fields->empty()) return {};
  const size_t at = random() % fields->size();
  const auto place = fields->begin() + static_cast<std::ptrdiff_t>(at);
  switch (random() % 10) {
    case 0:
      fields->erase(place);
      break;
    case 1: {
      const Field twin = *place;
      fields->insert(place, twin);
      break;
    }
    case 2:
      std::swap(*place, (*fields)[random() % fields->size()]);
      break;
    default:
      if (place->type == kVarint) {
        place->value = interesting_number(place->value, random);
      } else if (auto inner = depth < kDeepest && place->type == kBytes && random() % 4 != 0
                                  ? mutate_wire(place->bytes, random, depth + 1)
                                  : std::nullopt) {
        place->bytes = std::move(*inner);
      } else if (place->type == kBytes) {
        change_bytes(place->bytes, random);
      } else if (!place->bytes.empty()) {
        place->bytes[random() % place->bytes.size()] = static_cast<std::byte>(random());
      }
  }
  return to_bytes(*fields);
}

Bytes mutate_records(std::span<const std::byte> input, Random& random) {
  std::vector<Record> records = records_of(input);
  Bytes out, changed;
  if (records.empty()) return {input.begin(), input.end()};
  const size_t at = random() % records.size();
  const auto place = records.begin() + static_cast<std::ptrdiff_t>(at);
  switch (random() % 16) {
    case 0:
      records.erase(place);
      break;
    case 1: {
      const Record twin = *place;
      records.insert(place, twin);
      break;
    }
    case 2:
      std::swap(*place, records[random() % records.size()]);
      break;
    case 3:
      place->id = static_cast<uint32_t>(interesting_number(place->id, random));
      break;
    case 4:
      place->kind = static_cast<uint8_t>(random() % 32);
      break;
    case 5:
      place->payload = records[random() % records.size()].payload;
      break;
    default:
      if (auto message = mutate_wire(place->payload, random)) {
        changed = std::move(*message);
      } else {
        changed.assign(place->payload.begin(), place->payload.end());
        change_bytes(changed, random);
      }
      place->payload = changed;
  }
  for (const Record& r : records) append_record(out, r.kind, r.id, r.payload);
  return out;
}

}  // namespace migrate::fuzz
