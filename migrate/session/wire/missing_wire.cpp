#include "migrate/session/wire/missing_wire.h"

#include <algorithm>

#include "migrate/session/wire/layout_wire.h"

namespace migrate {
namespace {

std::vector<PageDiscard> runs_in(const PagesByMemory& pages) {
  std::vector<PageDiscard> runs;
  for (const auto& [memory, set] : pages)
    for (const PageSet::Range& range : set.ranges())
      runs.push_back({memory, range.start, (range.end - range.start) / kPageSize});
  return runs;
}

}  // namespace

std::vector<wire::Discards> to_wire(const PagesByMemory& pages) { return to_wire(runs_in(pages)); }

wire::Discards whole_to_wire(const PagesByMemory& pages) {
  wire::Discards all;
  for (const wire::Discards& part : to_wire(pages)) all.MergeFrom(part);
  return all;
}

void add_from_wire(const wire::Discards& part, PagesByMemory& pages) {
  std::vector<PageDiscard> runs = from_wire(part);
  const auto place = [](const PageDiscard& run) { return std::pair(run.memory, run.address); };
  std::ranges::sort(runs, {}, place);
  PagesByMemory added;
  for (const PageDiscard& run : runs)
    if (run.pages != 0) added[run.memory].append(run.address, run.address + run.pages * kPageSize);
  for (auto& [memory, set] : added) pages[memory] = pages[memory] | set;
}

void PartsBound::count(const wire::Discards& part) {
  const std::string it_tells = std::string("it tells of ") + what_;
  if (part.runs_size() > most_runs_ - runs_) throw Corrupt("a message of the peer", it_tells + ", and of too many");
  if (parts_ > most_runs_ / kPartDiscards) throw Corrupt("a message of the peer", it_tells + " in too many parts");
  runs_ += part.runs_size();
  ++parts_;
}

}  // namespace migrate
