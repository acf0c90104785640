// Shared memory objects of the tree, in the coordinator: shared anonymous memory, System V segments, and memfds until
// the final images say what becomes of them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/files/restore_files.h"
#include "core/ipc/ipc_restore.h"
#include "core/memory/page_images.h"
#include "core/restore/task_image.h"

namespace migrate {

class SharedMemory {
 public:
  struct Wanted {
    uint64_t bytes = 0;
    bool memfd = false;
    std::string name;  ///< of a memfd
    std::optional<SegmentMaker> segment = {};
  };
  struct Object : Wanted {
    uint64_t id = 0;  ///< shmid
    Fd fd;
  };
  /// Makes it the objects of `wanted` (by shmid): what exists is kept, and grows. Returns those that are new.
  std::vector<uint64_t> follow(const std::map<uint64_t, Wanted>& wanted, IpcRestorer& ipc);
  /// Gives back pages; what is not there is passed over.
  void discard(uint64_t id, uint64_t offset, uint64_t bytes);
  const std::vector<Object>& objects() const { return objects_; }
  /// The memfds, which are no longer in here.
  std::map<uint64_t, WarmMemfd> take_memfds();

 private:
  std::vector<Object> objects_;
};

/// Adds System V segments. Throws Corrupt for numbers that stand twice.
void add_segments(const std::vector<img::ipc_shm_entry>& segments, std::map<uint64_t, SharedMemory::Wanted>& wanted);

/// Shared anonymous memory that the tasks map. Throws Corrupt for sizes that cannot be.
std::map<uint64_t, SharedMemory::Wanted> wanted_objects(const std::vector<TaskImage>& tasks);

/// Throws Corrupt unless the segments that tasks have attached are among `wanted`, and reach as far.
void check_segments(const std::vector<TaskImage>& tasks, const std::map<uint64_t, SharedMemory::Wanted>& wanted);

/// Gives back pages of an object of `size` bytes, as far as it has them.
void punch_hole(int fd, uint64_t size, uint64_t offset, uint64_t bytes);

/// Reads the pages of shared object `id` (`bytes` long) from image files.
void fill_object(PageImages& pages, uint64_t id, int fd, uint64_t bytes);

}  // namespace migrate
