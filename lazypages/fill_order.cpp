#include "lazypages/fill_order.h"

#include <algorithm>

#include "core/base/types.h"

namespace migrate {
namespace {

uint64_t end_of(const PageRun& run) { return run.address + run.pages * kPageSize; }

}  // namespace

FillOrder::FillOrder(std::vector<RankedRun> runs) : runs_(std::move(runs)) {
  std::ranges::stable_sort(runs_, std::greater(), &RankedRun::rank);
  for (const RankedRun& r : runs_) put_back(r.memory, r.run.address, r.run.pages * kPageSize);
}

void FillOrder::leave_out(MemoryId memory, uint64_t address, uint64_t bytes) {
  const auto set = left_.find(memory);
  if (set == left_.end()) return;
  for (const auto& [start, end] : cut(set->second, address, address + bytes)) pages_left_ -= (end - start) / kPageSize;
}

void FillOrder::put_back(MemoryId memory, uint64_t address, uint64_t bytes) {
  leave_out(memory, address, bytes);
  add(left_[memory], address, address + bytes);
  pages_left_ += bytes / kPageSize;
  first_ = 0;
}

void FillOrder::faulted(MemoryId memory, uint64_t address) {
  leave_out(memory, address, kPageSize);
  Place place{memory, address, kReach};
  const auto near = std::ranges::find_if(places_, [&](const Place& p) {
    // Just beyond what was given around it, too: that is where whoever goes on faults next.
    return p.memory == memory && address + p.reach + kMostBytes >= p.at && address <= p.at + p.reach + kMostBytes;
  });
  if (near != places_.end()) {
    place.reach = std::min(near->reach * 2, kMostReach);
    places_.erase(near);
  }
  places_.push_front(place);
  if (places_.size() > kPlaces) places_.pop_back();
}

FillPiece FillOrder::give(MemoryId memory, uint64_t address, uint64_t bytes) {
  leave_out(memory, address, bytes);
  return {memory, address, bytes};
}

/// The nearest pages above, else those below.
std::optional<FillPiece> FillOrder::beside(const Place& place, uint64_t most) {
  const auto set = left_.find(place.memory);
  if (set == left_.end()) return std::nullopt;
  if (const auto above = first_in(set->second, place.at, place.at + place.reach))
    return give(place.memory, above->first, std::min(most, above->second - above->first));
  if (const auto below = last_in(set->second, place.at - std::min(place.at, place.reach), place.at)) {
    const uint64_t bytes = std::min(most, below->second - below->first);
    return give(place.memory, below->second - bytes, bytes);
  }
  return std::nullopt;
}

std::optional<FillPiece> FillOrder::by_rank(uint64_t most) {
  for (; first_ < runs_.size(); ++first_) {
    const RankedRun& r = runs_[first_];
    if (const auto part = first_in(left_.at(r.memory), r.run.address, end_of(r.run)))
      return give(r.memory, part->first, std::min(most, part->second - part->first));
  }
  return std::nullopt;
}

std::optional<FillPiece> FillOrder::next(uint64_t most) {
  for (const Place& place : places_) {
    if (auto piece = beside(place, most)) return piece;
  }
  return by_rank(most);
}

}  // namespace migrate
