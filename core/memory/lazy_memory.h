// Memory that comes after the task has begun to run: the seam between the restore, which registers it, and the daemon
// that fills it (lazypages).
#pragma once

#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"
#include "core/memory/page_io.h"

namespace migrate {

/// Of all mappings of shared objects that a task has, as LazyMemory::memory. They are one space, in which each object
/// has a place.
inline constexpr MemoryId kSharedMappings{MemoryId::Kind::shmem, ~uint64_t{0}};

/// Private memory of a task of which pages are missing: they come when they are touched (userfaultfd(2)), or before.
struct LazyMemory {
  MemoryId memory;  ///< whose pages they are at the source
  /// Nonblocking; UFFDIO_API was done with the events FORK, REMAP, REMOVE and UNMAP, without USER_MODE_ONLY.
  Fd userfaultfd;
  Fd process;                       ///< pidfd of the task
  std::vector<RemoteRange> ranges;  ///< registered for missing pages; ascending, disjoint
  /// Pages that exist at the source and have not come, within `ranges`; ascending, disjoint. All other pages of
  /// `ranges` are present or of zeros.
  std::vector<PageRun> missing;

  // Also a shared object: `memory` is the object, `userfaultfd` its file, `ranges` one, its place among objects, and
  // `missing` offsets. And the shared mappings of a task (kSharedMappings): its userfaultfd has the features
  // MINOR_SHMEM and MISSING_SHMEM, the events FORK, REMAP and UNMAP (REMOVE would tell nothing); `ranges` are
  // registered for both and have no pages of the objects yet that are missing in them; `missing` are as many, the place
  // of each range.
};

}  // namespace migrate
