// From sets of pages (PageSet) to the runs that are sent (PageRun, which know whether zeros may be left out), and back.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "core/memory/page_io.h"
#include "core/memory/track_set.h"

namespace migrate {

/// Pages of several memories.
using PagesByMemory = std::map<MemoryId, PageSet>;

PageSet pages_of(std::span<const PageRun> runs);
/// Only pages that the receiver has nothing of (not `held`) may be left out when they are zero.
std::vector<PageRun> runs_of(const PageSet& pages, const PageSet& held);
/// `runs` (ascending, disjoint) without `pages`; zero_ok stays.
std::vector<PageRun> runs_without(std::span<const PageRun> runs, const PageSet& pages);

}  // namespace migrate
