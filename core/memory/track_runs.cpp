#include "core/memory/track_runs.h"

namespace migrate {

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

}  // namespace migrate
