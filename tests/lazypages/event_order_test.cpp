// Events of several threads in another order than what they tell of, against a model of the kernel that knows every
// page.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/lazypages/page_model.h"

namespace migrate {
namespace {

using namespace page_model;

constexpr uint64_t kSpace = 128, kEach = 12;

/// One address space: page → what is there.
struct Mapped {
  size_t owner = 0;  ///< thread
  bool registered = false;
  std::optional<uint64_t> source;  ///< missing: where the source has it
};
using Memory = std::map<uint64_t, Mapped>;

struct Event {
  enum class What : uint8_t { moved, unmapped, removed, forked };
  What what;
  uint64_t page = 0, count = 0, to = 0;
};

/// Threads of one task, each in a call or not, and what has been read of its events.
class Simulation {
 public:
  struct Options {
    bool grow = true;      ///< mappings
    unsigned held_up = 0;  ///< of 100 calls, so many are done and their first event is not in the queue yet
  };
  Simulation(uint64_t seed, Options options) : random_(seed), options_(options) {
    std::vector<RemoteRange> ranges;
    std::vector<PageRun> missing;
    for (size_t t = 0; t < threads_.size(); ++t) {
      ranges.push_back(pages(t * 2 * kEach, kEach));
      for (uint64_t p = t * 2 * kEach; p < t * 2 * kEach + kEach; ++p) {
        const bool is = below(4) != 0;
        memory_[p] = {t, true, is ? std::optional(p) : std::nullopt};
        if (is) missing.push_back({kBase + p * kPageSize, 1});
      }
    }
    known_ = MissingPages(ranges, missing);
  }

  void step() {
    Thread& t = threads_[below(threads_.size())];
    switch (below(4)) {
      case 0:
        if (!t.events.empty() && !t.queued) queue(t);
        return;
      case 1:
        return read();
      case 2:
        if (quiet() && known_.unsettled()) settle(known_, memory_);
        return;
      default:
        if (t.events.empty()) act(static_cast<size_t>(&t - threads_.data()));
    }
  }
  /// All has been read, and the kernel has been asked.
  void end() {
    while (!quiet()) {
      for (Thread& t : threads_)
        if (!t.events.empty() && !t.queued) queue(t);
      read();
    }
    settle(known_, memory_);
  }
  /// What is wrong, if anything is: of the pages of `owner` or of all.
  static std::string compare(const MissingPages& known, const Memory& memory, std::optional<size_t> owner = {}) {
    for (const auto& [page, at] : memory) {
      if (owner && at.owner != *owner) continue;
      const uint64_t source = known.source_of(kBase + page * kPageSize).value_or(0);
      const uint64_t expected = at.source ? kBase + *at.source * kPageSize : 0;
      if (at.registered && source != expected)
        return "page " + std::to_string(page) +
               (source == 0     ? " is lost"
                : expected == 0 ? " is not missing"
                                : " is another");
    }
    return {};
  }
  std::string wrong() const { return !wrong_.empty() ? wrong_ : compare(known_, memory_); }

 private:
  struct Thread {
    std::deque<Event> events;  ///< of its call, that have not been read
    bool queued = false;       ///< the first of them
  };

  uint64_t below(uint64_t n) { return random_() % n; }
  bool quiet() const {
    return std::ranges::all_of(threads_, [](const Thread& t) { return t.events.empty(); });
  }
  void queue(Thread& t) {
    t.queued = true;
    queue_.push_back(&t);
  }
  void tell(size_t thread, std::deque<Event> events) {
    Thread& t = threads_[thread];
    t.events = std::move(events);
    if (!t.events.empty() && below(100) >= options_.held_up) queue(t);
  }

  static void settle(MissingPages& known, const Memory& memory) {
    settle_moves(known, [&](uint64_t address) {
      const auto at = memory.find((address - kBase) / kPageSize);
      return at != memory.end() && at->second.registered;
    });
  }

  void read() {
    if (queue_.empty()) return;
    Thread& t = *queue_.front();
    queue_.pop_front();
    const Event e = t.events.front();
    t.events.pop_front();
    t.queued = false;
    const RemoteRange r = pages(e.page, e.count);
    switch (e.what) {
      case Event::What::moved:
        known_.moved(r.start, pages(e.to, 1).start, r.bytes());
        break;
      case Event::What::unmapped:
        known_.unmapped(r);
        break;
      case Event::What::removed:
        known_.settle(r);
        for (uint64_t p = e.page; p < e.page + e.count; ++p)
          if (const auto at = memory_.find(p); at != memory_.end()) at->second.source.reset();
        break;
      case Event::What::forked: {
        MissingPages child = known_.forked();
        settle(child, forked_.at(e.page).second);
        if (auto w = compare(child, forked_.at(e.page).second, forked_.at(e.page).first); !w.empty() && wrong_.empty())
          wrong_ = "a fork's " + w;
      }
    }
  }

  /// Areas of a thread: first page → how many.
  std::vector<std::pair<uint64_t, uint64_t>> areas(size_t thread) const {
    std::vector<std::pair<uint64_t, uint64_t>> all;
    for (const auto& [page, at] : memory_) {
      if (at.owner != thread) continue;
      if (!all.empty() && all.back().first + all.back().second == page &&
          memory_.at(page - 1).registered == at.registered) {
        ++all.back().second;
      } else {
        all.emplace_back(page, 1);
      }
    }
    return all;
  }
  /// As mmap(2) finds it: the highest hole.
  std::optional<uint64_t> hole(uint64_t count) const {
    for (uint64_t at = kSpace - count + 1; at-- > 0;) {
      const auto next = memory_.lower_bound(at);
      if (next == memory_.end() || next->first >= at + count) return at;
    }
    return std::nullopt;
  }
  /// An UNMAP, if something registered was there.
  void unmap(uint64_t page, uint64_t count, std::deque<Event>& events) {
    bool registered = false;
    for (uint64_t p = page; p < page + count; ++p) {
      const auto at = memory_.find(p);
      registered |= at != memory_.end() && at->second.registered;
      if (at != memory_.end()) memory_.erase(at);
    }
    if (registered) events.push_back({Event::What::unmapped, page, count});
  }

  void act(size_t thread) {
    const auto all = areas(thread);
    std::deque<Event> events;
    if (all.empty() || below(12) == 0) {
      const uint64_t count = 1 + below(4);
      const auto at = hole(count);
      for (uint64_t p = 0; at && p < count; ++p) memory_[*at + p] = {thread, false, {}};
      return;
    }
    const auto [page, size] = all[below(all.size())];
    const uint64_t first = page + below(size), count = 1 + below(page + size - first);
    switch (below(9)) {
      case 0:
        unmap(first, count, events);
        break;
      case 1: {
        if (!memory_[first].registered) return;
        events.push_back({Event::What::removed, first, count});
        break;
      }
      case 2:
        forked_.emplace_back(thread, memory_);
        events.push_back({Event::What::forked, forked_.size() - 1});
        break;
      case 3:
        resize(thread, page, size, events);
        break;
      default:
        move(thread, first, count, count, below(5) == 0, events);
    }
    tell(thread, std::move(events));
  }

  void resize(size_t thread, uint64_t page, uint64_t size, std::deque<Event>& events) {
    const uint64_t to = 1 + below(size + (options_.grow ? 4 : 0));
    if (below(2) == 0) return move(thread, page, std::min(size, to), to, false, events, size);
    if (to <= size) return unmap(page + to, size - to, events);
    const auto next = memory_.lower_bound(page + size);
    if (page + to > kSpace || (next != memory_.end() && next->first < page + to)) return;
    for (uint64_t p = page + size; p < page + to; ++p) memory_[p] = {thread, memory_[page].registered, {}};
  }

  /// mremap(2) with MREMAP_FIXED, to a hole or onto other memory of the thread. `size`: the old one, if it shrinks.
  void move(size_t thread, uint64_t from, uint64_t count, uint64_t grown, bool stays, std::deque<Event>& events,
            uint64_t size = 0) {
    auto to = hole(grown);
    if (below(3) == 0) {
      const auto all = areas(thread);
      const auto [page, pages] = all[below(all.size())];
      if (pages >= grown && (page >= from + std::max(count, size) || page + grown <= from)) to = page;
    }
    if (!to) return;
    std::deque<Event> after;
    unmap(*to, grown, events);
    if (size > count) unmap(from + count, size - count, after);
    const bool registered = memory_[from].registered;
    std::vector<Mapped> pages;
    for (uint64_t p = from; p < from + count; ++p) pages.push_back(memory_[p]);
    pages.resize(grown, Mapped{thread, registered, {}});
    if (registered) events.push_back({Event::What::moved, from, count, *to});
    if (stays) {
      for (uint64_t p = from; p < from + count; ++p) memory_[p].source.reset();
    } else {
      unmap(from, count, after);
    }
    for (uint64_t p = 0; p < grown; ++p) memory_[*to + p] = pages[p];
    events.insert(events.end(), after.begin(), after.end());
  }

  std::mt19937_64 random_;
  Options options_;
  Memory memory_;
  MissingPages known_;
  std::array<Thread, 3> threads_;
  std::deque<Thread*> queue_;
  std::vector<std::pair<size_t, Memory>> forked_;
  std::string wrong_;
};

/// Of 6,000 programs of 60 steps each, those of which something is known wrongly at the end.
int wrong_ones(Simulation::Options options) {
  constexpr uint64_t kPrograms = 6000;
  int wrong = 0;
  for (uint64_t seed = 1; seed <= kPrograms; ++seed) {
    Simulation simulation(seed, options);
    for (int i = 0; i < 60; ++i) simulation.step();
    simulation.end();
    if (!simulation.wrong().empty()) ++wrong;
  }
  return wrong;
}

// Not none: which of two moves from one place is the older no event tells, if that place was left and taken again, and
// left again, while the first who left it had not told (README.md, "Limits"). Here threads do nothing else, next to
// each other. Without doubts, and with what moves leave not told apart, it was 7, 19 and 16.
TEST(EventOrder, WhatIsMissingIsKnownHoweverCallsOverlap) {
  EXPECT_LE(wrong_ones({.grow = false}), 3);
  EXPECT_LE(wrong_ones({}), 4);
  EXPECT_LE(wrong_ones({.held_up = 20}), 4);
}

}  // namespace
}  // namespace migrate
