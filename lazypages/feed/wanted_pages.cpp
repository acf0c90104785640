#include "lazypages/feed/wanted_pages.h"

#include <sys/eventfd.h>

#include <algorithm>

#include "core/base/error.h"

namespace migrate {

WantedPages::WantedPages()
    : event_(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "make an eventfd for", "missing pages")) {}

void WantedPages::wake() noexcept {
  const uint64_t one = 1;
  // EAGAIN would mean that the counter is at its maximum: readable as well.
  [[maybe_unused]] const ssize_t n = ::write(event_.get(), &one, sizeof one);
}

void WantedPages::want(MemoryId memory, uint64_t address) {
  {
    const std::lock_guard lock(mutex_);
    if (gone_.contains(memory)) return;
    const auto [at, fresh] = wishes_.try_emplace({memory, address});
    Wish& wish = at->second;
    wish.latest = Clock::now();
    if (!fresh && !wish.here) return;
    wish.here = false;
    wish.since = wish.latest;
    ++statistics_.wanted;
    ++statistics_.waiting;
    if (wish.asked) return;  // the answer to an earlier request is on its way
    queue_.emplace_back(memory, address);
  }
  wake();
}

std::vector<WantedPages::Page> WantedPages::take() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(event_.get(), &count, sizeof count);
  const std::lock_guard lock(mutex_);
  std::vector<Page> pages;
  for (const Page& page : queue_) {
    const auto wish = wishes_.find(page);
    if (wish == wishes_.end() || wish->second.asked) continue;  // it has come with the fill
    wish->second.asked = true;
    pages.push_back(page);
  }
  queue_.clear();
  return pages;
}

void WantedPages::ask_again() {
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(wishes_, [](const auto& wish) { return wish.second.here; });
    std::vector<std::pair<Clock::time_point, Page>> all;
    for (auto& [page, wish] : wishes_) {
      wish.asked = false;
      all.emplace_back(wish.since, page);
    }
    std::ranges::sort(all);
    queue_.clear();
    for (const auto& [since, page] : all) queue_.push_back(page);
  }
  wake();
}

bool WantedPages::are_asked_for(MemoryId memory, uint64_t address, uint64_t pages) const {
  const std::lock_guard lock(mutex_);
  for (uint64_t i = 0; i < pages; ++i) {
    const auto wish = wishes_.find({memory, address + i * kPageSize});
    if (wish == wishes_.end() || !wish->second.asked) return false;
  }
  return true;
}

void WantedPages::came(Wish& wish, uint64_t& counter) {
  statistics_.latencies.add(Clock::now() - wish.since);
  ++counter;
  --statistics_.waiting;
}

void WantedPages::answered(MemoryId memory, uint64_t address, uint64_t pages, Clock::time_point since) {
  const std::lock_guard lock(mutex_);
  for (uint64_t i = 0; i < pages; ++i) {
    const auto wish = wishes_.find({memory, address + i * kPageSize});
    if (wish == wishes_.end()) continue;
    if (wish->second.latest >= since) {
      wish->second.asked = false;
      queue_.push_back(wish->first);
      wake();
      continue;
    }
    if (!wish->second.here) came(wish->second, statistics_.by_request);
    wishes_.erase(wish);
  }
}

void WantedPages::filled(MemoryId memory, uint64_t address, uint64_t pages, Clock::time_point since) {
  const std::lock_guard lock(mutex_);
  const Page end{memory, address + pages * kPageSize};
  for (auto wish = wishes_.lower_bound({memory, address}); wish != wishes_.end() && wish->first < end;) {
    if (wish->second.here || wish->second.latest >= since) {
      ++wish;
      continue;
    }
    came(wish->second, statistics_.by_fill);
    wish->second.here = true;
    if (wish->second.asked) {
      ++wish;  // until its answer is here, too
    } else {
      wish = wishes_.erase(wish);
    }
  }
}

bool WantedPages::wants(MemoryId memory) const {
  const std::lock_guard lock(mutex_);
  const auto first = wishes_.lower_bound({memory, 0});
  return first != wishes_.end() && first->first.first == memory;
}

void WantedPages::never(MemoryId memory) {
  const std::lock_guard lock(mutex_);
  gone_.insert(memory);
  std::erase_if(wishes_, [&](const auto& wish) {
    if (wish.first.first != memory) return false;
    if (!wish.second.here) --statistics_.waiting;
    return true;
  });
}

WantedStatistics WantedPages::statistics() const {
  const std::lock_guard lock(mutex_);
  WantedStatistics out = statistics_;
  const auto now = Clock::now();
  for (const auto& [page, wish] : wishes_)
    if (!wish.here)
      out.longest_wait = std::max(out.longest_wait, std::chrono::floor<std::chrono::microseconds>(now - wish.since));
  return out;
}

}  // namespace migrate
