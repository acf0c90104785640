// The missing pages of an address space, against a model that knows every page by itself.
#include "lazypages/missing_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "core/base/error.h"
#include "tests/lazypages/page_model.h"

namespace migrate {
namespace {

using namespace page_model;

constexpr uint64_t kPages = 96;

PageRun run(uint64_t first, uint64_t count) { return {kBase + first * kPageSize, count}; }

/// The same, page by page.
struct Model {
  std::map<uint64_t, uint64_t> missing;  ///< address → source
  std::map<uint64_t, bool> registered;

  void settle(RemoteRange r) {
    for (uint64_t a = r.start.get(); a < r.end.get(); a += kPageSize) missing.erase(a);
  }
  void unmapped(RemoteRange r) {
    settle(r);
    for (uint64_t a = r.start.get(); a < r.end.get(); a += kPageSize) registered.erase(a);
  }
  void moved(uint64_t from, uint64_t to, uint64_t bytes) {
    std::map<uint64_t, uint64_t> moving;
    for (uint64_t o = 0; o < bytes; o += kPageSize) {
      if (missing.contains(from + o)) moving[to + o] = missing[from + o];
      missing.erase(from + o);
    }
    for (uint64_t o = 0; o < bytes; o += kPageSize) {
      missing.erase(to + o);
      registered[from + o] = registered[to + o] = true;
    }
    missing.insert(moving.begin(), moving.end());
  }
};

void expect_first_of_source(const MissingPages& mine, const Model& model, uint64_t source, uint64_t bytes) {
  std::optional<MissingRun> expected;
  for (uint64_t s = source; s < source + bytes; s += kPageSize) {
    const auto at = std::find_if(model.missing.begin(), model.missing.end(), [&](auto& m) { return m.second == s; });
    const bool here = at != model.missing.end();
    if (!expected && here) {
      expected = MissingRun{at->first, s, kPageSize};
    } else if (expected) {
      if (!here || at->first != expected->address + expected->bytes) break;
      expected->bytes += kPageSize;
    }
  }
  EXPECT_EQ(mine.first_of_source(source, bytes), expected);
}

void expect_same(const MissingPages& mine, const Model& model, std::mt19937_64& random) {
  ASSERT_EQ(mine.pages(), model.missing.size());
  std::map<uint64_t, uint64_t> got;
  uint64_t last_end = 0, last_source = 0;
  for (const MissingRun& r : mine.runs()) {
    ASSERT_GE(r.address, last_end);
    ASSERT_FALSE(r.address == last_end && r.source == last_source) << "one piece in two";
    for (uint64_t o = 0; o < r.bytes; o += kPageSize) got[r.address + o] = r.source + o;
    last_end = r.address + r.bytes;
    last_source = r.source + r.bytes;
  }
  ASSERT_EQ(got, model.missing);
  uint64_t registered = 0;
  for (const RemoteRange& r : mine.ranges()) registered += r.pages();
  ASSERT_EQ(registered, model.registered.size());
  for (int i = 0; i < 8; ++i) {
    const uint64_t a = kBase + random() % kPages * kPageSize;
    ASSERT_EQ(mine.registered(a), model.registered.contains(a));
    const auto source = mine.source_of(a);
    ASSERT_EQ(source.has_value(), model.missing.contains(a));
    if (source) {
      ASSERT_EQ(*source, model.missing.at(a));
    }
    const auto next = mine.next(a);
    const auto expected = model.missing.lower_bound(a);
    ASSERT_EQ(next.has_value(), expected != model.missing.end());
    if (next) {
      ASSERT_EQ(std::pair(next->address, next->source), std::pair(expected->first, expected->second));
    }
    uint64_t zeros = 0;
    while (zeros < 5 * kPageSize && model.registered.contains(a + zeros) && !model.missing.contains(a + zeros))
      zeros += kPageSize;
    ASSERT_EQ(mine.zeros_from(a, 5 * kPageSize), zeros);
    expect_first_of_source(mine, model, a, (1 + random() % 12) * kPageSize);
  }
}

TEST(MissingPages, AreWhatAModelPageByPageSays) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<RemoteRange> ranges;
    std::vector<PageRun> missing;
    Model model;
    for (uint64_t p = random() % 4; p + 16 < kPages / 2; p += random() % 3) {
      const uint64_t size = 1 + random() % 15;
      ranges.push_back(pages(p, size));
      for (uint64_t i = 0; i < size; ++i) model.registered[kBase + (p + i) * kPageSize] = true;
      for (uint64_t i = 0; i < size; ++i) {
        if (random() % 3 == 0) continue;
        missing.push_back(run(p + i, 1));
        model.missing[kBase + (p + i) * kPageSize] = kBase + (p + i) * kPageSize;
      }
      p += size;
    }
    MissingPages mine(ranges, missing);
    for (int step = 0; step < 150; ++step) {
      const uint64_t count = 1 + random() % 10, first = random() % (kPages - count);
      const RemoteRange r = pages(first, count);
      switch (random() % 8) {
        case 0:
          mine.settle(r);
          model.settle(r);
          break;
        case 1:
          mine.unmapped(r);
          model.unmapped(r);
          break;
        case 2:
          mine.grown(r);
          for (uint64_t a = r.start.get(); a < r.end.get(); a += kPageSize) model.registered[a] = true;
          break;
        case 3:
          mine = mine.forked();
          break;
        default: {
          // As the kernel does it: the target is unmapped, the pages move, the old range is unmapped or stays.
          const uint64_t to = random() % (kPages - count);
          if (to + count > first && first + count > to) break;
          const RemoteRange target = pages(to, count);
          mine.unmapped(target);
          model.unmapped(target);
          mine.moved(r.start, target.start, r.bytes());
          model.moved(r.start.get(), target.start.get(), r.bytes());
          if (random() % 2 == 0) {
            mine.unmapped(r);
            model.unmapped(r);
          }
        }
      }
      settle_moves(mine, [&](uint64_t at) { return model.registered.contains(at); });
      expect_same(mine, model, random);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

/// Of 100 MiB, by page: where the source has it, or 0.
struct LongModel {
  static constexpr uint64_t kLong = 13000;
  std::vector<uint64_t> sources = std::vector<uint64_t>(2 * kLong);
  std::vector<MissingRun> runs() const {
    std::vector<MissingRun> all;
    for (uint64_t p = 0; p < sources.size(); ++p) {
      if (sources[p] == 0) continue;
      const uint64_t at = kBase + p * kPageSize;
      if (!all.empty() && all.back().address + all.back().bytes == at &&
          all.back().source + all.back().bytes == sources[p]) {
        all.back().bytes += kPageSize;
      } else {
        all.push_back({at, sources[p], kPageSize});
      }
    }
    return all;
  }
};

// Over the borders of what is kept as bits, and with the record's words in between.
TEST(MissingPages, OfLongRangesAreWhatAModelSays) {
  constexpr uint64_t kLong = LongModel::kLong;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    LongModel model;
    std::vector<PageRun> missing;
    for (uint64_t p = 0; p < kLong; ++p) {
      if (seed % 2 == 0 && random() % 3 == 0) continue;
      missing.push_back(run(p, 1));
      model.sources[p] = kBase + p * kPageSize;
    }
    const std::vector<RemoteRange> ranges{pages(0, kLong)};
    MissingPages mine(ranges, missing);
    for (int step = 1; step <= 4000; ++step) {
      const uint64_t count = 1 + random() % (random() % 50 == 0 ? 5000 : 4), first = random() % (2 * kLong - count);
      const uint64_t to = random() % (2 * kLong - count);
      const auto clear = [&](uint64_t page) { std::fill_n(&model.sources[page], count, 0); };
      if (random() % 4 != 0) {
        mine.settle(pages(first, count));
        clear(first);
      } else if (to + count <= first || first + count <= to) {
        mine.unmapped(pages(to, count));
        mine.moved(pages(first, count).start, pages(to, count).start, count * kPageSize);
        mine.unmapped(pages(first, count));
        std::copy_n(&model.sources[first], count, &model.sources[to]);
        clear(first);
      }
      if (step % 500 != 0) continue;
      std::vector<uint64_t> words(mine.words());
      mine.save(words);
      mine = MissingPages::saved(words);
      ASSERT_EQ(mine.runs(), model.runs());
      for (const MissingRun& r : model.runs()) {
        ASSERT_EQ(mine.first_of_source(r.source, kPageSize), (MissingRun{r.address, r.source, kPageSize}));
        ASSERT_EQ(mine.next(r.address)->source, r.source);
      }
    }
  }
}

// What each fork costs, recorded: a program scatters what is missing as it likes.
TEST(MissingPages, TakeLittleHoweverTheyAreScattered) {
  constexpr uint64_t kMany = 16384, kMost = 8 << 10;
  const std::vector<RemoteRange> ranges{pages(0, kMany)};
  const std::vector<PageRun> all{run(0, kMany)};
  MissingPages discarded(ranges, all), moved(ranges, all), unmapped(ranges, all);
  std::vector<PageRun> halves;
  for (uint64_t p = 0; p < kMany; p += 2) {
    halves.push_back(run(p + 1, 1));
    discarded.settle(pages(p, 1));
    // Moved away, discarded there, and the mapping before grows over its place.
    moved.moved(pages(p, 1).start, pages(2 * kMany, 1).start, kPageSize);
    moved.unmapped(pages(p, 1));
    moved.unmapped(pages(2 * kMany, 1));
    settle_moves(moved, [](uint64_t) { return false; });
    moved.grown(pages(p, 1));
    unmapped.unmapped(pages(p, 1));
    unmapped.grown(pages(p, 1));
  }
  for (const MissingPages& m : {discarded, moved, unmapped, MissingPages(ranges, halves)}) {
    EXPECT_EQ(m.pages(), kMany / 2);
    EXPECT_LT(m.words() * sizeof(uint64_t), kMost);
    EXPECT_EQ(m.runs().size(), kMany / 2);
  }
}

// Two pages of each span are left: bits are as many as before.
TEST(MissingPages, AreCountedAsWhatTheyTakeHoweverFewAreLeft) {
  constexpr uint64_t kSpan = MissingSpans::kMostWithHoles / kPageSize, kSpans = 64;
  const std::vector<RemoteRange> ranges{pages(0, kSpan * kSpans)};
  MissingPages m(ranges, std::vector<PageRun>{run(0, kSpan * kSpans)});
  const uint64_t first = m.most_bytes();
  for (uint64_t i = 0; i < kSpans; ++i) m.settle(pages(i * kSpan + 1, kSpan - 2));
  EXPECT_EQ(m.pages(), 2 * kSpans);
  EXPECT_GE(m.words() * sizeof(uint64_t), kSpans * kSpan / 8);
  // Here once, and recorded three times.
  EXPECT_GE(m.most_bytes(), 4 * m.words() * sizeof(uint64_t));
  EXPECT_LE(m.most_bytes(), 2 * first);
}

TEST(MissingPages, AnUnmapThatAMoveOvertookIsOlderThanTheMove) {
  const std::vector<RemoteRange> ranges{pages(0, 4), pages(10, 4)};
  const std::vector<PageRun> missing{run(0, 4), run(10, 4)};
  MissingPages m(ranges, missing);
  m.moved(pages(0, 4).start, pages(10, 4).start, 4 * kPageSize);
  m.unmapped(pages(10, 4));  // by another thread, before
  m.unmapped(pages(0, 4));
  EXPECT_EQ(m.runs(), (std::vector<MissingRun>{{kBase + 10 * kPageSize, kBase, 4 * kPageSize}}));
  m.unmapped(pages(10, 4));  // and this one is of what was moved there
  EXPECT_TRUE(m.empty());
  EXPECT_TRUE(m.ranges().empty());
}

TEST(MissingPages, AMoveThatAnotherOvertookAtThePlaceItLeftMovesWhatWasThere) {
  const std::vector<RemoteRange> ranges{pages(0, 4), pages(10, 4)};
  const std::vector<PageRun> missing{run(0, 4), run(10, 4)};
  // One thread moved 10 to 20, then another 0 to 10; the latter is read first.
  for (const bool cut_short : {false, true}) {
    MissingPages m(ranges, missing);
    m.moved(pages(0, 4).start, pages(10, 4).start, 4 * kPageSize);
    EXPECT_TRUE(m.unsettled());
    EXPECT_EQ(m.pages(), 8u);
    EXPECT_TRUE(m.aside(kBase + 13 * kPageSize, kPageSize));
    EXPECT_FALSE(m.aside(kBase + 14 * kPageSize, kPageSize));
    EXPECT_EQ(m.source_of(kBase + 10 * kPageSize), kBase);
    EXPECT_EQ(m.first_of_source(kBase + 10 * kPageSize, kPageSize), std::nullopt);
    if (cut_short) {
      m.settle_moves();  // there was no such event: what was there is gone
      EXPECT_EQ(m.pages(), 4u);
      continue;
    }
    m.moved(pages(10, 4).start, pages(20, 4).start, 4 * kPageSize);
    m.unmapped(pages(10, 4));
    m.unmapped(pages(0, 4));
    EXPECT_FALSE(m.overtook());
    EXPECT_EQ(m.runs(), (std::vector<MissingRun>{{kBase + 10 * kPageSize, kBase, 4 * kPageSize},
                                                 {kBase + 20 * kPageSize, kBase + 10 * kPageSize, 4 * kPageSize}}));
    m.moved(pages(10, 4).start, pages(30, 4).start, 4 * kPageSize);
    EXPECT_EQ(m.source_of(kBase + 30 * kPageSize), kBase);
  }
}

/// What of 4 pages that were moved from 0 to 10 is missing there at the end, and elsewhere.
struct Landed {
  MissingPages m{std::vector<RemoteRange>{pages(0, 4), pages(20, 4)}, std::vector<PageRun>{run(0, 4), run(20, 4)}};
  void move(uint64_t from, uint64_t to, uint64_t count) {
    m.moved(pages(from, count).start, pages(to, count).start, count * kPageSize);
  }
  void settle(const RemoteRange& registered) {
    settle_moves(m, [&](uint64_t at) { return registered.contains(RemoteAddr(at)); });
  }
  bool there() const { return m.source_of(kBase + 10 * kPageSize) == kBase; }
};

// Before the move a mapping had grown there, which no event told, and another thread unmapped it.
TEST(MissingPages, AnUnmapThatAMoveOvertookWhereNothingWasKnownIsOlderIfTheKernelSaysSo) {
  for (const bool older : {true, false}) {
    Landed l;
    l.move(0, 10, 4);
    l.m.unmapped(pages(8, 6));
    l.m.unmapped(pages(0, 4));
    EXPECT_TRUE(l.m.unsettled());
    l.settle(older ? pages(10, 4) : pages(0, 0));
    EXPECT_EQ(l.there(), older);
    EXPECT_EQ(l.m.registered(kBase + 10 * kPageSize), older);
    EXPECT_EQ(l.m.pages(), older ? 8U : 4U);
  }
  Landed twice;
  twice.move(0, 10, 4);
  twice.m.unmapped(pages(10, 4));
  twice.m.unmapped(pages(10, 4));
  EXPECT_FALSE(twice.there());
}

// It had grown before it was moved away: one thread has moved 20 to 30, of which 20 was known, and its UNMAP is still
// to come.
TEST(MissingPages, WhatIsMovedAwayWasRegisteredWhetherItWasKnownOrNot) {
  for (const bool again : {false, true}) {
    Landed l;
    l.m.unmapped(pages(22, 2));  // known: 20 and 21
    l.move(20, 30, 4);
    l.move(0, 22, 2);
    if (again) l.move(22, 40, 2);  // by the same thread: no other has a move to tell of there
    l.m.unmapped(pages(20, 4));
    l.m.unmapped(pages(0, 2));
    if (again) l.m.unmapped(pages(22, 2));
    l.settle(pages(0, 100));
    EXPECT_EQ(l.m.source_of(kBase + (again ? 40 : 22) * kPageSize), kBase);
    EXPECT_EQ(l.m.source_of(kBase + (again ? 22 : 40) * kPageSize), std::nullopt);
    EXPECT_EQ(l.m.source_of(kBase + 30 * kPageSize), kBase + 20 * kPageSize);
    EXPECT_EQ(l.m.pages(), 6U);
  }
}

TEST(MissingPages, AMoveOfNothingLeavesNothing) {
  const RemoteRange range{RemoteAddr(16 * kPageSize), RemoteAddr(32 * kPageSize)};
  const std::vector<RemoteRange> ranges{range};
  const std::vector<PageRun> missing{{range.start.get(), 16}};
  MissingPages pages(ranges, missing);
  pages.moved(range.start, RemoteAddr(64 * kPageSize), 0);
  EXPECT_FALSE(pages.unsettled());
  EXPECT_FALSE(pages.doubt());
  EXPECT_EQ(pages.pages(), 16u);
}

// A fork gets no events that were outstanding: what it does itself is newer.
TEST(MissingPages, AForkWaitsForNoOlderEvents) {
  Landed l;
  l.move(0, 20, 2);   // overtook
  l.move(2, 10, 2);   // landed
  l.move(22, 30, 1);  // its UNMAP is outstanding
  MissingPages child = l.m.forked();
  EXPECT_FALSE(child.overtook());
  child.moved(pages(20, 2).start, pages(50, 2).start, 2 * kPageSize);
  child.unmapped(pages(20, 2));
  child.unmapped(pages(10, 2));
  settle_moves(child, [&](uint64_t) { return false; });
  EXPECT_EQ(child.source_of(kBase + 50 * kPageSize), kBase);
  EXPECT_EQ(child.source_of(kBase + 30 * kPageSize), kBase + 22 * kPageSize);
  EXPECT_FALSE(child.registered(kBase + 22 * kPageSize));
  EXPECT_EQ(child.pages(), 4U);  // and 23
}

TEST(MissingPages, WhatDoesNotFitIsThrownOut) {
  const auto make = [](std::vector<RemoteRange> ranges, std::vector<PageRun> missing) {
    return MissingPages(ranges, missing);
  };
  EXPECT_NO_THROW(make({pages(0, 4), pages(4, 4)}, {run(2, 4)}));
  EXPECT_THROW(make({pages(0, 4)}, {run(2, 4)}), Corrupt);
  EXPECT_THROW(make({pages(4, 4), pages(0, 4)}, {}), Corrupt);
  EXPECT_THROW(make({pages(0, 4)}, {run(1, 1), run(0, 1)}), Corrupt);
  EXPECT_THROW(make({pages(0, 4)}, {{kBase + 1, 1}}), Corrupt);
  EXPECT_THROW(make({pages(0, 4)}, {run(0, 0)}), Corrupt);
  EXPECT_THROW(make({pages(0, 4)}, {{kBase, UINT64_MAX / kPageSize}}), Corrupt);
  EXPECT_THROW(make({{RemoteAddr(kBase), RemoteAddr(kUserSpace + kPageSize)}}, {}), Corrupt);
}

}  // namespace
}  // namespace migrate
