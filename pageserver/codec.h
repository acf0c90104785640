// Little-endian numbers in byte buffers, bounds checked by the buffer's fixed size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace migrate {

/// Fills or reads a buffer from its start; the caller's layout must fit (fixed-size headers only).
class Packer {
 public:
  explicit Packer(std::span<std::byte> out) : out_(out) {}
  template <class T>
  Packer& put(T value) {
    static_assert(std::is_unsigned_v<T>);
    for (size_t i = 0; i < sizeof(T); ++i) out_[at_++] = static_cast<std::byte>(value >> (8 * i) & 0xff);
    return *this;
  }

 private:
  std::span<std::byte> out_;
  size_t at_ = 0;
};

class Unpacker {
 public:
  explicit Unpacker(std::span<const std::byte> in) : in_(in) {}
  template <class T>
  T get() {
    static_assert(std::is_unsigned_v<T>);
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) value |= std::to_integer<uint64_t>(in_[at_++]) << (8 * i);
    return static_cast<T>(value);
  }

 private:
  std::span<const std::byte> in_;
  size_t at_ = 0;
};

}  // namespace migrate
