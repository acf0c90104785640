// Memory that pages stand in on their way: a fixed number of pieces, used again and again.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "core/base/types.h"

namespace migrate {

class PageBuffers;

/// One piece; goes back to its PageBuffers, which must live longer, when it goes. Move-only.
class PageFileBuffer {
 public:
  PageFileBuffer() = default;
  PageFileBuffer(PageFileBuffer&& other) noexcept
      : owner_(std::exchange(other.owner_, nullptr)), bytes_(std::exchange(other.bytes_, nullptr)) {}
  PageFileBuffer& operator=(PageFileBuffer&& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PageFileBuffer();
  std::span<std::byte> bytes() const;  ///< whole pages; empty if there is no buffer

 private:
  friend class PageBuffers;
  PageFileBuffer(PageBuffers* owner, std::byte* bytes) : owner_(owner), bytes_(bytes) {}
  PageBuffers* owner_ = nullptr;
  std::byte* bytes_ = nullptr;
};

class PageBuffers {
 public:
  /// pread(2) on /proc/PID/mem is fastest in pieces of 256 KiB to 1 MiB.
  static constexpr size_t kBytes = 1 << 20;

  explicit PageBuffers(size_t count);
  PageBuffers(const PageBuffers&) = delete;
  PageBuffers& operator=(const PageBuffers&) = delete;
  ~PageBuffers();
  bool any_free() const { return !free_.empty(); }
  PageFileBuffer take();  ///< if there is a free one

 private:
  friend class PageFileBuffer;
  size_t bytes_;
  std::byte* memory_;
  std::vector<std::byte*> free_;
};

}  // namespace migrate
