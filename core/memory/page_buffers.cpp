#include "core/memory/page_buffers.h"

#include <sys/mman.h>

#include "core/base/error.h"

namespace migrate {

PageFileBuffer::~PageFileBuffer() {
  if (owner_ != nullptr) owner_->free_.push_back(bytes_);
}

std::span<std::byte> PageFileBuffer::bytes() const { return {bytes_, owner_ == nullptr ? 0 : PageBuffers::kBytes}; }

PageBuffers::PageBuffers(size_t count) : bytes_(count * kBytes) {
  void* at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw Error("make", "buffers for pages", errno);
  memory_ = static_cast<std::byte*>(at);
  free_.reserve(count);  // so that giving back does not fail
  for (size_t i = count; i > 0; --i) free_.push_back(memory_ + (i - 1) * kBytes);
}

PageBuffers::~PageBuffers() { ::munmap(memory_, bytes_); }

PageFileBuffer PageBuffers::take() {
  std::byte* bytes = free_.back();
  free_.pop_back();
  return {this, bytes};
}

}  // namespace migrate
