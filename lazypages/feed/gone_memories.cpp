#include "lazypages/feed/gone_memories.h"

#include <sys/eventfd.h>

#include <algorithm>

#include "core/base/error.h"

namespace migrate {

GoneMemories::GoneMemories()
    : event_(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "make an eventfd for", "memories that are gone")) {}

void GoneMemories::add(MemoryId memory, uint64_t pages) {
  const std::lock_guard lock(mutex_);
  const auto [at, fresh] = gone_.try_emplace(memory);
  at->second.pages += pages;
  if (fresh) ::eventfd_write(event_.get(), 1);
}

bool GoneMemories::contains(MemoryId memory) const {
  const std::lock_guard lock(mutex_);
  return gone_.contains(memory);
}

std::vector<MemoryId> GoneMemories::take() {
  eventfd_t count = 0;
  ::eventfd_read(event_.get(), &count);
  const std::lock_guard lock(mutex_);
  std::vector<MemoryId> untold;
  for (auto& [memory, gone] : gone_) {
    if (gone.known != Gone::Known::here) continue;
    gone.known = Gone::Known::told;
    untold.push_back(memory);
  }
  return untold;
}

bool GoneMemories::noted(MemoryId memory) {
  const std::lock_guard lock(mutex_);
  const auto at = gone_.find(memory);
  if (at == gone_.end() || at->second.known != Gone::Known::told) return false;
  at->second.known = Gone::Known::noted;
  return true;
}

bool GoneMemories::all_noted() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::all_of(gone_, [](const auto& one) { return one.second.known == Gone::Known::noted; });
}

std::map<MemoryId, uint64_t> GoneMemories::pages() const {
  const std::lock_guard lock(mutex_);
  std::map<MemoryId, uint64_t> all;
  for (const auto& [memory, gone] : gone_) all.emplace(memory, gone.pages);
  return all;
}

}  // namespace migrate
