// Builds the region that the restorer blob runs in: lists of records and their data, with final addresses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <vector>

#include "core/restore/restorer/protocol.h"

namespace migrate {

/// Address space for the blob of a task, with room to spare.
inline uint64_t restorer_room(size_t mappings, size_t staged, size_t threads) {
  return (uint64_t{16} << 20) + (mappings + staged) * 2048 + threads * 65536;
}

class OpList {
 public:
  using Tag = restorer::Tag;
  /// A system call; at most six arguments.
  void call(Tag tag, long nr, std::initializer_list<uint64_t> args, uint32_t flags = 0) {
    add(restorer::Op::syscall, tag, args, flags, static_cast<uint32_t>(nr));
  }
  void add(restorer::Op op, Tag tag, std::initializer_list<uint64_t> args = {}, uint32_t flags = 0, uint32_t nr = 0) {
    restorer::Record r{op, tag, flags, nr, {}};
    std::copy(args.begin(), args.end(), r.args);
    records_.push_back(r);
  }
  const std::vector<restorer::Record>& records() const { return records_; }

 private:
  std::vector<restorer::Record> records_;
};

/// Bytes that will stand at `base`; every put returns the final address.
class Region {
 public:
  explicit Region(uint64_t base) : base_(base) {}

  uint64_t put(std::span<const std::byte> bytes) {
    const size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + bytes.size());
    if (!bytes.empty()) std::memcpy(bytes_.data() + at, bytes.data(), bytes.size());
    return base_ + at;
  }
  template <class T>
  uint64_t put_value(const T& value) {
    return put(std::as_bytes(std::span(&value, 1)));
  }
  /// Returns the address of the List.
  uint64_t put_list(const OpList& list) {
    const uint64_t records = put(std::as_bytes(std::span(list.records())));
    return put_value(restorer::List{records, list.records().size()});
  }
  /// A stack, zeroed; returns its lowest address.
  uint64_t put_stack(size_t bytes) {
    const size_t at = (bytes_.size() + 63) / 64 * 64;
    bytes_.resize(at + bytes);
    return base_ + at;
  }
  uint64_t base() const { return base_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  uint64_t base_;
  std::vector<std::byte> bytes_;
};

}  // namespace migrate
