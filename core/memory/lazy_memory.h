// Memory that comes after the task has begun to run: the seam between the restore, which registers it, and the daemon
// that fills it (lazypages).
#pragma once

#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"
#include "core/memory/page_io.h"

namespace migrate {

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
};

}  // namespace migrate
