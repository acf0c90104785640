// Shared anonymous memory objects of the tree, in the coordinator.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_images.h"

namespace migrate {

class SharedMemory {
 public:
  struct Object {
    uint64_t id = 0;  ///< shmid
    uint64_t bytes = 0;
    Fd fd;
  };
  /// Makes it the objects of `sizes` (bytes by shmid): what exists is kept, and grows. Returns those that are new.
  std::vector<uint64_t> follow(const std::map<uint64_t, uint64_t>& sizes);
  /// Gives back pages; what is not there is passed over.
  void discard(uint64_t id, uint64_t offset, uint64_t bytes);
  const std::vector<Object>& objects() const { return objects_; }

 private:
  std::vector<Object> objects_;
};

/// Reads the pages of shared object `id` (`bytes` long) from image files.
void fill_object(PageImages& pages, uint64_t id, int fd, uint64_t bytes);

}  // namespace migrate
