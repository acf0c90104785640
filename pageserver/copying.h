// Memory for pages on their way, and copies that are not slow by where they lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "core/base/types.h"

namespace migrate {

/// Where memcpy(3), or a copy within the kernel, is `rep movsb`, AMD's Zen 3 and 4 take 16 times as long for a target
/// that lies 1 to 15 bytes behind its source modulo 4096 (measured: 3.4 instead of 55 GB/s). glibc 2.39 avoids it (its
/// bug 30994), Debian 12 has 2.36.
constexpr bool is_slow_copy(uintptr_t to, uintptr_t from) {
  const uintptr_t apart = (to - from) % kPageSize;
  return apart >= 1 && apart <= 15;
}

/// Up to this size memcpy(3) never uses `rep movsb`.
inline constexpr size_t kSmallCopy = 1024;

/// How much of that to copy at a time: all, or a small piece where that helps.
constexpr size_t copy_at_a_time(uintptr_t to, uintptr_t from, size_t size) {
  return is_slow_copy(to, from) ? std::min(size, kSmallCopy) : size;
}

/// memcpy(3), in small pieces where that helps.
inline void copy_bytes(void* to, const void* from, size_t size) {
  const size_t piece = copy_at_a_time(reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from), size);
  for (size_t done = 0; done < size; done += piece)
    std::memcpy(static_cast<std::byte*>(to) + done, static_cast<const std::byte*>(from) + done,
                std::min(piece, size - done));
}

inline bool is_zero_page(const std::byte* page) {
  static constexpr std::byte kZeros[16] = {};
  return std::memcmp(page, kZeros, 16) == 0 && std::memcmp(page, page + 16, kPageSize - 16) == 0;
}

/// Page-aligned bytes.
class PageBuffer {
 public:
  explicit PageBuffer(size_t size) { reserve(size); }
  /// Makes it at least that large; what it held is lost if it grows.
  void reserve(size_t size) {
    if (size <= size_) return;
    bytes_.reset();
    bytes_.reset(static_cast<std::byte*>(::operator new(size, kAlignment)));
    size_ = size;
  }
  std::byte* data() const { return bytes_.get(); }
  std::span<std::byte> first(size_t size) const { return std::span(bytes_.get(), size_).first(size); }

 private:
  static constexpr std::align_val_t kAlignment{kPageSize};
  struct Delete {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, kAlignment); }
  };
  std::unique_ptr<std::byte, Delete> bytes_;
  size_t size_ = 0;
};

}  // namespace migrate
