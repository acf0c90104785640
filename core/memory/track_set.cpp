#include "core/memory/track_set.h"

#include <algorithm>

namespace migrate {

void PageSet::append(uint64_t start, uint64_t end) {
  if (start >= end) return;
  if (!ranges_.empty() && start < ranges_.back().start) {  // a scan may tell a region late
    *this = *this | PageSet(start, end);
  } else if (!ranges_.empty() && ranges_.back().end >= start) {
    ranges_.back().end = std::max(ranges_.back().end, end);
  } else {
    ranges_.push_back({start, end});
  }
}

uint64_t PageSet::pages() const {
  uint64_t bytes = 0;
  for (const Range& r : ranges_) bytes += r.end - r.start;
  return bytes / kPageSize;
}

bool PageSet::contains(uint64_t start, uint64_t end) const {
  const auto after =
      std::upper_bound(ranges_.begin(), ranges_.end(), start, [](uint64_t a, const Range& r) { return a < r.start; });
  return start >= end || (after != ranges_.begin() && end <= std::prev(after)->end);
}

PageSet operator|(const PageSet& a, const PageSet& b) {
  PageSet out;
  out.ranges_.reserve(a.ranges_.size() + b.ranges_.size());
  for (auto i = a.ranges_.begin(), j = b.ranges_.begin(); i != a.ranges_.end() || j != b.ranges_.end();) {
    const bool first = j == b.ranges_.end() || (i != a.ranges_.end() && i->start < j->start);
    const PageSet::Range& r = first ? *i++ : *j++;
    out.append(r.start, r.end);
  }
  return out;
}

PageSet operator-(const PageSet& a, const PageSet& b) {
  PageSet out;
  auto cut = b.ranges_.begin();
  for (const PageSet::Range& r : a.ranges_) {
    uint64_t at = r.start;
    while (cut != b.ranges_.end() && cut->end <= at) ++cut;
    for (auto c = cut; c != b.ranges_.end() && c->start < r.end; ++c) {
      out.append(at, c->start);
      at = std::max(at, c->end);
    }
    out.append(at, r.end);
  }
  return out;
}

PageSet operator&(const PageSet& a, const PageSet& b) {
  PageSet out;
  auto i = a.ranges_.begin(), j = b.ranges_.begin();
  while (i != a.ranges_.end() && j != b.ranges_.end()) {
    out.append(std::max(i->start, j->start), std::min(i->end, j->end));
    if (i->end < j->end) {
      ++i;
    } else {
      ++j;
    }
  }
  return out;
}

}  // namespace migrate
