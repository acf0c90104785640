// LazySpace, where it is of shared mappings: what has come is known to the objects, and a task sees a page when it has
// asked for it, and not before. What a task has done to its mappings is followed by events as for private memory.
#include "core/base/error.h"
#include "lazypages/lazy_space.h"
#include "lazypages/userfault.h"

namespace migrate {

/// False: not now, or the memory is dead.
bool LazySpace::answer_shared(uint64_t address, std::vector<uint64_t>& wanted) {
  if (missing_.overtook() && !settle_moves()) {
    if (userfaultfd_) read_events();
    return false;
  }
  if (!userfaultfd_) return false;
  const LazyObjects& objects = *around_->objects;
  const auto place = missing_.source_of(address);
  if (!place) {
    // A mapping that was made or has grown without an event (mremap(2) of no bytes, MREMAP_DONTUNMAP): it may be of
    // anything.
    if (objects.whole()) return show(address);
    parked_ = true;
    return true;
  }
  if (objects.awaits(*place)) {
    waited_for_.insert(address);
    wanted.push_back(*place);
    return true;
  }
  return show(address, *place, &wanted);
}

/// False: not now, or the memory is dead.
bool LazySpace::show(uint64_t address, uint64_t place, std::vector<uint64_t>* wanted) {
  auto r = show_page(userfaultfd_.get(), address);
  if (!r) {
    // A hole, perhaps the one that keeps others from seeing pages of its block that have not come (LazyObject).
    const std::vector<uint64_t> others =
        wanted != nullptr ? around_->objects->needed_before(place) : std::vector<uint64_t>();
    if (!others.empty()) {
      holes_.emplace(address, place);
      wanted->insert(wanted->end(), others.begin(), others.end());
      return true;
    }
    try {
      r = zero_pages(userfaultfd_.get(), address, kPageSize);
    } catch (const Error& e) {
      if (e.code() != EFAULT) throw;  // the object ends before: SIGBUS
      r = FillResult{Filled::exists};
    }
  }
  if (r->outcome == Filled::changing) {
    read_events();
    return false;
  }
  if (r->outcome == Filled::dead) {
    close();
    return false;
  }
  if (r->outcome != Filled::done) wake(userfaultfd_.get(), range_of(address, kPageSize));
  return true;
}

void LazySpace::came(uint64_t place, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!userfaultfd_) return;
  const uint64_t end = place + bytes;
  while (place < end && !waited_for_.empty()) {
    const auto run = missing_.first_of_source(place, end - place);
    if (!run) break;
    let_go_on(range_of(run->address, run->bytes));
    place = run->source + run->bytes;
  }
  std::erase_if(holes_, [&](const auto& hole) {
    if (!around_->objects->needed_before(hole.second).empty()) return false;
    wake(userfaultfd_.get(), range_of(hole.first, kPageSize));
    return true;
  });
  if (parked_ && around_->objects->whole()) {
    parked_ = false;
    wake_all();
  }
}

}  // namespace migrate
