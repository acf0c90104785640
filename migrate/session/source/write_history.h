// When pages of a tree were written, as far as the rounds of dirty tracking tell: those written last will be needed
// first.
#pragma once

#include <deque>
#include <map>
#include <span>
#include <vector>

#include "core/memory/page_runs.h"
#include "lazypages/fill_order.h"

namespace migrate {

/// Adding is cheap; what was found is looked at only when pages are ranked.
class WriteHistory {
 public:
  /// What another scan found written since the one before.
  void add(std::vector<PageSource> written);
  void add(PagesByMemory written);
  /// Those pages of `pages` that were written in the latest scans: higher ranks the later they were written last, and
  /// among those written last at the same time, the later they were written before that.
  std::vector<RankedRun> rank(std::span<const PageSource> pages) const;

 private:
  /// Each may double the number of ranks, and so of passes over the pages.
  static constexpr size_t kScans = 3;
  struct Scan {
    std::vector<PageSource> runs;
    PagesByMemory pages;
  };
  void add(Scan scan);

  std::deque<Scan> scans_;  ///< latest first
};

}  // namespace migrate
