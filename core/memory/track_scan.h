// The scans of dirty tracking (PAGEMAP_SCAN, Linux 6.7) over private anonymous memory of a task that may be running.
// `pagemap` is its open /proc/PID/pagemap; once the task has left that memory (exec, exit) a scan finds nothing.
#pragma once

#include <optional>

#include "core/base/types.h"
#include "core/memory/track_set.h"

namespace migrate {

/// Pages written since they were protected last (present or in swap; the zero page is none), protected again in the
/// same step. Those mapped by huge entries are appended to `huge` too: the next write to such a one splits it. nullopt:
/// part of the range is not registered; pages in front of that part were protected, unreported. Holes are never asked
/// for: protecting them would build page tables for them (a terabyte reservation: gigabytes).
std::optional<PageSet> scan_and_protect(int pagemap, PageSet::Range range, PageSet& huge);

/// Pages that hold data of the task's own, in registered mappings or not. `huge` as above.
PageSet scan_existing(int pagemap, PageSet::Range range, PageSet* huge = nullptr);
/// Those in registered mappings.
PageSet scan_tracked(int pagemap, PageSet::Range range);
/// All that were written since they were protected, or cannot have been protected; and some that do not exist.
PageSet scan_not_clean(int pagemap, PageSet::Range range);

/// Of file pages in private mappings: those that the task has a copy of.
PageSet scan_private_copies(int pagemap, PageSet::Range range);

}  // namespace migrate
