// The tracer's view of M: the same memory, mapped here too.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "core/base/procfs.h"
#include "core/base/types.h"

namespace migrate {

/// A shared mapping of ours; unmapped when it goes.
class SharedMapping {
 public:
  SharedMapping() = default;
  SharedMapping(int fd, size_t bytes);
  SharedMapping(SharedMapping&& o) noexcept
      : start_(std::exchange(o.start_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  SharedMapping& operator=(SharedMapping&& o) noexcept {
    std::swap(start_, o.start_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~SharedMapping();
  std::byte* data() const { return static_cast<std::byte*>(start_); }
  size_t size() const { return bytes_; }

 private:
  void* start_ = nullptr;
  size_t bytes_ = 0;
};

/// Maps what `task` has mapped in just this range if it is shared anonymous memory of that size, as its own mmap(2)
/// made it: nobody has a descriptor of such an object, so nobody can truncate or seal it, and nobody else's file is
/// written. Whoever can write the task's memory may have put something else there: Error then, and it was not opened.
SharedMapping map_area_of(const ProcDir& task, RemoteRange range);

}  // namespace migrate
