// From sets of pages to the runs that are sent.
#pragma once

#include <vector>

#include "core/memory/page_io.h"
#include "core/memory/track_set.h"

namespace migrate {

/// Only pages that the receiver has nothing of (not `held`) may be left out when they are zero.
std::vector<PageRun> runs_of(const PageSet& pages, const PageSet& held);

}  // namespace migrate
