#include "migrate/session/source/write_history.h"

#include <utility>

namespace migrate {

void WriteHistory::add(Scan scan) {
  scans_.push_front(std::move(scan));
  if (scans_.size() > kScans) scans_.pop_back();
}

void WriteHistory::add(std::vector<PageSource> written) {
  for (PageSource& source : written) source.fd.reset();
  add(Scan{.runs = std::move(written), .pages = {}});
}

void WriteHistory::add(PagesByMemory written) { add(Scan{.runs = {}, .pages = std::move(written)}); }

std::vector<RankedRun> WriteHistory::rank(std::span<const PageSource> pages) const {
  struct Group {
    PageSet pages;
    uint64_t rank = 0;
  };
  std::map<MemoryId, std::vector<Group>> groups;
  for (const PageSource& source : pages) groups[source.memory].push_back({pages_of(source.runs), 0});
  uint64_t bit = uint64_t{1} << kScans;
  for (const Scan& scan : scans_) {
    bit >>= 1;
    PagesByMemory written = scan.pages;
    for (const PageSource& source : scan.runs)  // of a task there may be two
      written[source.memory] = written[source.memory] | pages_of(source.runs);
    for (auto& [memory, all] : groups) {
      std::vector<Group> split;
      for (Group& group : all) {
        PageSet again = group.pages & written[memory];
        if (PageSet rest = group.pages - again; !rest.empty()) split.push_back({std::move(rest), group.rank});
        if (!again.empty()) split.push_back({std::move(again), group.rank | bit});
      }
      all = std::move(split);
    }
  }
  std::vector<RankedRun> order;
  for (const auto& [memory, all] : groups) {
    for (const Group& group : all) {
      if (group.rank == 0) continue;
      for (const PageSet::Range& r : group.pages.ranges())
        order.push_back({memory, {.address = r.start, .pages = (r.end - r.start) / kPageSize}, group.rank});
    }
  }
  return order;
}

}  // namespace migrate
