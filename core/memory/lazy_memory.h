// Memory that comes after the task has begun to run: the seam between the restore, which registers it, and the daemon
// that fills it (lazypages).
#pragma once

#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"
#include "core/memory/page_io.h"

namespace migrate {

/// LazyMemory::memory of a task's mappings of shared objects. The objects of a tree are one space, in which each has a
/// place.
inline constexpr MemoryId kSharedMappings{MemoryId::Kind::shmem, ~uint64_t{0}};

/// Memory of which pages are missing: they come when they are touched (userfaultfd(2)), or before. It is one of three,
/// as `memory` says, and all else means what that one needs:
/// - private memory of a task;
/// - a shared object, whatever maps it;
/// - all mappings of such objects that a task has (kSharedMappings): where it waits, while the objects say for what.
struct LazyMemory {
  MemoryId memory;  ///< whose pages they are at the source; or kSharedMappings
  /// Nonblocking; UFFDIO_API was done without USER_MODE_ONLY, for private memory with the events FORK, REMAP, REMOVE
  /// and UNMAP, for mappings with these but REMOVE, which would tell nothing, and the features MINOR_SHMEM and
  /// MISSING_SHMEM. Of an object: its file.
  Fd userfaultfd;
  Fd process;  ///< pidfd of the task; of an object any descriptor
  /// Ascending, disjoint. Registered for missing pages, mappings for minor faults as well: they have none of the
  /// objects' missing pages yet. Of an object: one, its place.
  std::vector<RemoteRange> ranges;
  /// Pages that exist at the source and have not come, ascending, disjoint: within `ranges`, of which all others are
  /// present or of zeros; of an object by offset. Of mappings: the place of each of `ranges`.
  std::vector<PageRun> missing;
};

}  // namespace migrate
