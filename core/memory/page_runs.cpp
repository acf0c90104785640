#include "core/memory/page_runs.h"

#include <algorithm>

namespace migrate {

PageSet pages_of(std::span<const PageRun> runs) {
  PageSet pages;
  for (const PageRun& run : runs) pages.append(run.address, run.address + run.pages * kPageSize);
  return pages;
}

std::vector<PageRun> runs_of(const PageSet& pages, const PageSet& held) {
  std::vector<PageRun> runs;
  const PageSet first = pages - held, again = pages & held;
  auto i = first.ranges().begin(), j = again.ranges().begin();
  while (i != first.ranges().end() || j != again.ranges().end()) {
    const bool fresh = j == again.ranges().end() || (i != first.ranges().end() && i->start < j->start);
    const PageSet::Range& r = fresh ? *i++ : *j++;
    runs.push_back({r.start, (r.end - r.start) / kPageSize, fresh});
  }
  return runs;
}

std::vector<PageRun> runs_without(std::span<const PageRun> runs, const PageSet& pages) {
  std::vector<PageRun> out;
  const std::vector<PageSet::Range>& cuts = pages.ranges();
  auto cut = cuts.begin();
  for (const PageRun& run : runs) {
    uint64_t from = run.address;
    const uint64_t end = run.address + run.pages * kPageSize;
    while (cut != cuts.end() && cut->end <= from) ++cut;
    for (auto c = cut; c != cuts.end() && c->start < end; ++c) {
      if (c->start > from) out.push_back({from, (c->start - from) / kPageSize, run.zero_ok});
      from = std::max(from, std::min(end, c->end));
    }
    if (from < end) out.push_back({from, (end - from) / kPageSize, run.zero_ok});
  }
  return out;
}

}  // namespace migrate
