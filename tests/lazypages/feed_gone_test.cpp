// A task of the frozen tree is killed while pages of it are missing: they are given up, and all others come.
#include "tests/lazypages/feed_testing.h"

namespace migrate::feed_testing {
namespace {

/// What proc(5) says of a task's memory when that has ended: nothing is there to be read.
void end_task(Memories& memories, MemoryId memory) {
  for (PageSource& source : memories.sources())
    if (source.memory == memory) check(::ftruncate(source.fd.get(), 0), "cut", "a memfd");
}

struct Gone {
  Gone() {
    memories.add(kA, {{0, 5000}});
    memories.add(kB, {{0, 3000}});
  }
  FetcherOptions options() {
    return {.gone = [this](MemoryId memory) {
      const std::lock_guard lock(mutex);
      told.push_back(memory);
    }};
  }
  std::vector<MemoryId> all_told() {
    const std::lock_guard lock(mutex);
    return told;
  }
  Memories memories;
  WantedPages wanted;
  Connection c = connected(2);
  std::mutex mutex;
  std::vector<MemoryId> told;
};

TEST(FeedGone, TheRestComes) {
  Gone g;
  Destination destination(g.memories);
  std::atomic<bool> ended = false;
  destination.before_write = [&](MemoryId memory, uint64_t, uint64_t) {
    if (memory != kA || ended.exchange(true)) return;
    g.wanted.want(kA, page(4999));
    end_task(g.memories, kA);
  };
  PageFeeder feeder(std::move(g.c.source), g.memories.sources(), {}, {.tells_gone = true});
  PageFetcher fetcher(std::move(g.c.destination), destination, g.wanted, g.memories.missing(), true, g.options());
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(eventually([&] { return fetcher.filled() || fetching.ended_within({}); }));
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  EXPECT_EQ(g.all_told(), std::vector{kA});
  EXPECT_FALSE(destination.missing().contains(kB));
  const auto gone = feeder.gone();
  ASSERT_EQ(gone.size(), 1u);
  EXPECT_GT(gone.at(kA), 0u);
  EXPECT_LE(gone.at(kA), destination.missing_pages());
  // Nobody waits for what never comes, now or later.
  g.wanted.want(kA, page(4998));
  EXPECT_EQ(g.wanted.statistics().waiting, 0u);
}

TEST(FeedGone, WhoAsksIsToldAtOnceAndWhatIsAskedForAfterwardsIsNotAnswered) {
  Gone g;
  Destination destination(g.memories);
  end_task(g.memories, kA);
  PageFeeder feeder(std::move(g.c.source), g.memories.sources(), {{kB, {0, 3000}, 1}},
                    {.bandwidth_limit = 4 << 20, .tells_gone = true});
  PageFetcher fetcher(std::move(g.c.destination), destination, g.wanted, g.memories.missing(), true, g.options());
  g.wanted.want(kA, page(17));
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(eventually([&] { return !g.all_told().empty(); }));
  EXPECT_TRUE(destination.missing().contains(kB)) << "the fill is not over";
  ASSERT_TRUE(eventually([&] { return fetcher.filled() || fetching.ended_within({}); }));
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  EXPECT_EQ(feeder.gone(), (std::map<MemoryId, uint64_t>{{kA, 5000}}));
  EXPECT_EQ(destination.missing_pages(), 5000u);
}

/// After a cut: kA has ended, these pages of it are missing, and one is asked for, before it is listed what is missing.
struct NewConnection {
  explicit NewConnection(const MissingRuns& of_gone)
      : missing(begin(of_gone)),
        feeder(std::move(g.c.source), g.memories.sources(), {}, {.tells_gone = true}),
        fetcher(std::move(g.c.destination), destination, g.wanted, missing, false, g.options()),
        source(feeder),
        fetching(fetcher) {}
  MissingRuns begin(const MissingRuns& of_gone) {
    end_task(g.memories, kA);
    g.wanted.want(kA, page(4003));
    MissingRuns all = of_gone;
    all[kB] = g.memories.missing().at(kB);
    return all;
  }
  Gone g;
  Destination destination{g.memories};
  MissingRuns missing;
  PageFeeder feeder;
  PageFetcher fetcher;
  Running<PageFeeder> source;
  Running<PageFetcher> fetching;
};

TEST(FeedGone, OnlyWhatIsMissingIsCounted) {
  NewConnection n({{kA, {{page(10), 90}, {page(4000), 10}}}});
  ASSERT_TRUE(eventually([&] { return n.fetcher.filled() || n.fetching.ended_within({}); }));
  n.fetcher.whole();
  EXPECT_EQ(n.source.get() + n.fetching.get(), "");
  EXPECT_EQ(n.feeder.gone(), (std::map<MemoryId, uint64_t>{{kA, 100}}));
}

// Who waited for a page has ended there, and the task here: it is asked for all the same.
TEST(FeedGone, WhatIsAskedForNeedNotBeMissingAnyMore) {
  NewConnection n({});
  ASSERT_TRUE(eventually([&] { return n.fetcher.filled() || n.fetching.ended_within({}); }));
  ASSERT_TRUE(eventually([&] { return !n.g.wanted.wants(kA) || n.fetching.ended_within({}); }));
  n.fetcher.whole();
  EXPECT_EQ(n.source.get() + n.fetching.get(), "");
}

TEST(FeedGone, WithoutAnyTaskTheFeedFails) {
  Gone g;
  Destination destination(g.memories);
  end_task(g.memories, kA);
  PageFeeder feeder(std::move(g.c.source), g.memories.sources(), {},
                    {.tells_gone = true, .some_live = [] { return false; }});
  PageFetcher fetcher(std::move(g.c.destination), destination, g.wanted, g.memories.missing(), true, g.options());
  Running source(feeder);
  Running fetching(fetcher);
  EXPECT_TRUE(says(source.get(), "the frozen tree has ended here"));
  EXPECT_TRUE(says(fetching.get(), "failed there: "));
  EXPECT_TRUE(g.all_told().empty());
}

// As when the agent has died, too: whoever goes on finds what lives.
TEST(FeedGone, WhatNoSourceHasIsOfTasksThatHaveEnded) {
  for (const bool some_gone : {true, false}) {
    Gone g;
    Destination destination(g.memories);
    std::vector<PageSource> living;
    living.push_back(std::move(g.memories.sources()[1]));
    PageFeeder feeder(std::move(g.c.source), living, {}, {.tells_gone = true, .most_gone = some_gone ? 1u : 0u});
    PageFetcher fetcher(std::move(g.c.destination), destination, g.wanted, g.memories.missing(), false, g.options());
    g.wanted.want(kA, page(17));
    Running source(feeder);
    Running fetching(fetcher);
    if (!some_gone) {
      EXPECT_TRUE(says(source.get(), "corrupt: "));
      continue;
    }
    ASSERT_TRUE(eventually([&] { return fetcher.filled() || fetching.ended_within({}); }));
    fetcher.whole();
    EXPECT_EQ(source.get() + fetching.get(), "");
    EXPECT_EQ(g.all_told(), std::vector{kA});
    EXPECT_EQ(feeder.gone(), (std::map<MemoryId, uint64_t>{{kA, 5000}}));
    EXPECT_FALSE(destination.missing().contains(kB));
  }
}

}  // namespace
}  // namespace migrate::feed_testing
