// The unnamed shared memory objects of a living tree: shared anonymous memory, System V segments and memfds, mapped or
// only open.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/ipc/sysv_objects.h"
#include "core/memory/track_set.h"
#include "core/memory/track_tree.h"

namespace migrate {

struct LivingObject {
  uint64_t id = 0;  ///< its inode number on the kernel's internal tmpfs
  bool memfd = false;
  std::string name;                     ///< of a memfd, as given to memfd_create(2)
  std::optional<SegmentMaker> segment;  ///< System V shared memory, of which the kernel makes its number the inode's
  uint64_t bytes = 0;                   ///< its size, up to whole pages
  PageSet pages;                        ///< that it has
  Fd fd;                                ///< to read
};

/// Each once. What comes and goes meanwhile may be missed: it is found the next time. System V segments only
/// while they are mapped. Memfds of huge pages are none of them (they cannot move).
std::vector<LivingObject> find_shared_objects(const std::vector<LivingTask>& tasks);

}  // namespace migrate
