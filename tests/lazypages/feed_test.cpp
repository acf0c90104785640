// Pages from a frozen source to a running destination: all of them, in which order, and what a cut leaves behind.
#include <random>

#include "tests/lazypages/feed_testing.h"

namespace migrate::feed_testing {
namespace {

class Feed : public ::testing::TestWithParam<std::tuple<size_t, bool, const char*>> {};

TEST_P(Feed, BringsEveryPageOnceBesideWhatIsAskedFor) {
  const auto [fill, tls, compression] = GetParam();
  TempDir temp;
  if (tls) make_keys({.dir = temp.path, .names = {"a", "b"}});
  Memories memories;
  memories.add(kA, {{page(3), 700}, {page(800), 1}, {page(802), 2}, {page(1000), 900}});
  memories.add(kB, {{0, 40}});
  memories.add(kShared, {{page(5), 300}});
  Connection c = connected(fill, tls ? temp.path : "");
  Destination destination(memories);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {},
                    {.compression = *parse_compression(compression), .codecs = {.lz4 = true, .zstd = true}});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true,
                      {.codecs = {.lz4 = true, .zstd = true}});
  Running source(feeder);
  Running fetching(fetcher);
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) wanted.want(kA, page(1000 + random() % 900));
  for (int i = 0; i < 20; ++i) wanted.want(kShared, page(5 + random() % 300));
  ASSERT_TRUE(destination.wait_until_whole());
  fetcher.whole();
  EXPECT_EQ(source.get(), "");
  EXPECT_EQ(fetching.get(), "");
  const WantedStatistics s = wanted.statistics();
  EXPECT_EQ(s.waiting, 0u);
  EXPECT_EQ(s.by_request + s.by_fill, s.wanted);
  EXPECT_EQ(s.latencies.count(), s.wanted);
  // Told as it became whole: the last page's wait may not have been counted yet.
  const FeedWaits told = feeder.waits();
  EXPECT_EQ(told.wanted, s.wanted);
  EXPECT_EQ(told.by_request + told.by_fill + told.waiting, s.wanted);
  EXPECT_LE(told.waiting, 3u);
  EXPECT_LE(told.most_us, s.latencies.max_us());
  EXPECT_GT(told.median_us, 0u);
  std::map<Destination::Page, int> times;
  for (const auto& p : destination.order()) ++times[p];
  EXPECT_EQ(times.size(), 1943u);
  EXPECT_LE(destination.order().size(), 1943 + s.wanted) << "a page comes twice only if it was asked for";
  EXPECT_EQ(feeder.counters().fill.pages + feeder.counters().requested, destination.order().size());
}

INSTANTIATE_TEST_SUITE_P(Streams, Feed,
                         ::testing::Values(std::tuple(1, false, "off"), std::tuple(3, false, "lz4"),
                                           std::tuple(2, true, "off"), std::tuple(1, true, "auto")));

/// Holds the fill up at its first write of a page that `which` likes, until it is opened.
class Gate {
 public:
  void hold(Destination& destination, MemoryId memory, uint64_t address) {
    destination.before_write = [this, memory, address](MemoryId m, uint64_t at, uint64_t pages) {
      std::unique_lock lock(mutex_);
      if (m != memory || address < at || address >= at + pages * kPageSize) return;
      held_ = true;
      changed_.notify_all();
      changed_.wait_for(lock, std::chrono::seconds(20), [&] { return open_; });
    };
  }
  [[nodiscard]] bool wait_until_held() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return held_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false, open_ = false;
};

TEST(FeedOrder, PagesWrittenLastComeFirstAndWhatHasNoRankLast) {
  Memories memories;
  memories.add(kA, {{0, 400}});
  memories.add(kB, {{0, 100}});
  Connection c = connected();
  Destination destination(memories);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(),
                    {{kA, {page(300), 50}, 1},
                     {kB, {page(20), 30}, 5},
                     {kA, {page(200), 10}, 3},
                     {kB, {page(90), 80}, 2},
                     {kShared, {0, 5}, 9}});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(destination.wait_until_whole());
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  std::vector<Destination::Page> expected;
  const auto expect = [&](MemoryId memory, uint64_t first, uint64_t pages) {
    for (uint64_t i = 0; i < pages; ++i) expected.emplace_back(memory, page(first + i));
  };
  expect(kB, 20, 30);
  expect(kA, 200, 10);
  expect(kB, 90, 10);
  expect(kA, 300, 50);
  expect(kA, 0, 200);
  expect(kA, 210, 90);
  expect(kA, 350, 50);
  expect(kB, 0, 20);
  expect(kB, 50, 40);
  EXPECT_EQ(destination.order(), expected);
}

TEST(FeedOrder, WhatIsAskedForOvertakesAFullFillAndItsNeighboursComeNext) {
  Memories memories;
  constexpr uint64_t kPages = 20000;
  memories.add(kA, {{0, kPages}});
  Connection c = connected();
  Destination destination(memories);
  Gate gate;
  gate.hold(destination, kA, 0);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(gate.wait_until_held());
  for (const uint64_t n : {15000u, 9000u}) {
    wanted.want(kA, page(n));
    EXPECT_TRUE(destination.wait_for_page(kA, page(n))) << n;
  }
  EXPECT_EQ(destination.order().size(), 2u) << "the fill has not moved";
  gate.open();
  ASSERT_TRUE(destination.wait_until_whole());
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  const auto order = destination.order();
  const auto place = [&](uint64_t n) {
    return std::ranges::find(order, Destination::Page(kA, page(n))) - order.begin();
  };
  // What was on its way already: two socket buffers, and what both ends hold.
  constexpr int64_t kOnItsWay = 4 * (kFillBuffer / static_cast<int64_t>(kPageSize)) + 200;
  for (const uint64_t n : {9001u, 8999u, 15001u, 14999u}) EXPECT_LT(place(n), kOnItsWay) << n;
  EXPECT_GT(place(12000), place(9001));
  EXPECT_EQ(feeder.counters().requested, 2u);
  EXPECT_EQ(order.size(), kPages) << "the fill leaves out what was asked for";
}

TEST(FeedOrder, OnlyWhatIsMissingIsBroughtAndTheRestIsServedAllTheSame) {
  Memories memories;
  memories.add(kA, {{0, 3000}});
  memories.add(kB, {{0, 100}});
  memories.add(kShared, {{0, 100}});
  MissingRuns missing{{kA, {}}, {kShared, {{page(10), 5}}}};
  for (uint64_t n = 2; n < 3000; n += 2) missing[kA].push_back({page(n), 1});  // more than a packet of runs
  Connection c = connected(2);
  Destination destination(memories);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, missing, false);
  wanted.want(kB, page(50));
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(eventually([&] { return fetcher.filled(); }));
  ASSERT_TRUE(destination.wait_for_page(kB, page(50)));
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  std::set<Destination::Page> expected{{kB, page(50)}};
  for (const auto& [memory, runs] : missing)
    for (const PageRun& run : runs)
      for (uint64_t i = 0; i < run.pages; ++i) expected.emplace(memory, run.address + i * kPageSize);
  const auto order = destination.order();
  EXPECT_EQ(std::set(order.begin(), order.end()), expected);
  EXPECT_EQ(order.size(), expected.size());
}

TEST(FeedOrder, ZerosGoWithoutContents) {
  Memories memories;
  memories.add(kA, {{0, 500}});
  // Runs of one page, of four, and of more than a batch; at both ends.
  for (const auto& [first, pages] :
       std::vector<std::pair<uint64_t, uint64_t>>{{0, 4}, {10, 1}, {20, 5}, {100, 300}, {490, 10}})
    memories.clear(kA, page(first), page(pages));
  Connection c = connected();
  Destination destination(memories);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(destination.wait_until_whole());
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  EXPECT_EQ(destination.order().size(), 500u);
  EXPECT_GE(feeder.counters().fill.zero_pages, 310u);
  EXPECT_EQ(feeder.counters().fill.pages + feeder.counters().fill.zero_pages, 500u);
  EXPECT_LT(feeder.counters().fill.wire_bytes, page(200));
}

TEST(FeedOrder, NothingIsMissing) {
  for (const bool announced : {false, true}) {
    Memories memories;
    if (announced) memories.add(kA, {{0, 30}});
    Connection c = connected(2);
    Destination destination(memories);
    WantedPages wanted;
    PageFeeder feeder(std::move(c.source), memories.sources(), {});
    PageFetcher fetcher(std::move(c.destination), destination, wanted, {}, !announced);
    Running source(feeder);
    Running fetching(fetcher);
    fetcher.whole();
    EXPECT_EQ(source.get() + fetching.get(), "");
    EXPECT_TRUE(destination.order().empty());
  }
}

/// A feeder whose end one can ask for from any thread.
struct TellingFeeder {
  PageFeeder& feeder;
  std::atomic<bool>& ended;
  void run() {
    struct Tell {
      std::atomic<bool>& ended;
      ~Tell() { ended = true; }
    } tell{ended};
    feeder.run();
  }
  void cancel() noexcept { feeder.cancel(); }
};

TEST(FeedCuts, AnotherConnectionGoesOnWithWhatIsMissing) {
  // Many times what the buffers of the connections hold, since that still comes after a cut.
  Memories memories;
  memories.add(kA, {{0, 4900}, {page(5000), 5100}});
  memories.add(kShared, {{0, 500}});
  Destination destination(memories);
  WantedPages wanted;
  std::atomic<int64_t> until_cut = 0;
  std::atomic<bool> source_ended = false;
  Stream* cut = nullptr;
  // From the cut on only what is under way comes. (The source need not notice that a stream is cut on which all is
  // sent.)
  constexpr int kMostPauses = 20;
  std::atomic<int> pauses = 0;
  destination.before_write = [&](MemoryId, uint64_t, uint64_t) {
    const int64_t left = --until_cut;
    if (left == 0) cut->abort();
    while (left <= 0 && !source_ended && ++pauses < kMostPauses)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  std::mt19937_64 random(8);
  uint64_t cuts = 0;
  for (int64_t writes = 1; destination.missing_pages() > 0; ++writes) {
    Connection c = connected(2);
    until_cut = 1 + writes;
    cut = std::array{c.destination.urgent.get(), c.destination.fill[0].get(), c.source.urgent.get(),
                     c.source.fill[1].get()}[static_cast<size_t>(writes) % 4];
    PageFeeder feeder(std::move(c.source), memories.sources(), {});
    PageFetcher fetcher(std::move(c.destination), destination, wanted, destination.missing(), writes == 1);
    for (int i = 0; i < 5; ++i) {
      const uint64_t n = 5000 + random() % 5100;
      if (!destination.has(kA, page(n))) wanted.want(kA, page(n));
    }
    source_ended = false;
    pauses = 0;
    TellingFeeder telling{feeder, source_ended};
    Running source(telling);
    Running fetching(fetcher);
    ASSERT_TRUE(eventually([&] { return fetching.ended_within({}) || destination.missing_pages() == 0; }));
    // A fill stream that has brought all that it had to bring may be cut.
    const bool whole = destination.missing_pages() == 0;
    if (whole) fetcher.whole();
    const std::string a = source.get(), b = fetching.get();
    if (whole) break;
    ++cuts;
    EXPECT_TRUE(says(a, "disconnected: ")) << a;
    EXPECT_TRUE(says(b, "disconnected: ")) << b;
  }
  EXPECT_EQ(destination.missing_pages(), 0u);
  EXPECT_GT(cuts, 5u);
  EXPECT_EQ(wanted.statistics().waiting, 0u);
}

TEST(FeedCuts, WhatIsWantedWhileThereIsNoConnectionIsAskedOfTheNext) {
  Memories memories;
  memories.add(kA, {{0, 20000}});
  Destination destination(memories);
  Gate gate;
  WantedPages wanted;
  wanted.want(kA, page(7000));
  {
    Connection c = connected();
    auto source = std::move(c.source);  // nobody answers
    PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
    Running fetching(fetcher);
    std::byte packets[2 * kFeedPacketSize + kAddressBytes];
    ASSERT_TRUE(source.urgent->read_exact(packets));
    wanted.want(kA, page(8000));
    source = {};
    EXPECT_TRUE(says(fetching.get(), "disconnected: "));
  }
  wanted.want(kA, page(9000));
  wanted.want(kA, page(7000));
  EXPECT_EQ(wanted.statistics().waiting, 3u);
  Connection c = connected();
  gate.hold(destination, kA, 0);
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
  Running source(feeder);
  Running fetching(fetcher);
  for (const uint64_t n : {7000u, 8000u, 9000u}) EXPECT_TRUE(destination.wait_for_page(kA, page(n))) << n;
  gate.open();
  ASSERT_TRUE(destination.wait_until_whole());
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
  EXPECT_EQ(wanted.statistics().by_request, 3u);
}

TEST(FeedEnds, WholeBeforeTheFillIsOver) {
  Memories memories;
  memories.add(kA, {{0, 20000}});
  Connection c = connected(2);
  Destination destination(memories);
  Gate gate;
  gate.hold(destination, kA, 0);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
  Running source(feeder);
  Running fetching(fetcher);
  ASSERT_TRUE(gate.wait_until_held());
  fetcher.whole();  // the tree has ended
  EXPECT_EQ(source.get(), "") << "the source need not wait";
  gate.open();
  EXPECT_EQ(fetching.get(), "");
  EXPECT_FALSE(fetcher.filled());
}

/// In the middle: the destination waits with the first pages until the gate is opened.
struct HeldFeed {
  HeldFeed() {
    memories.add(kA, {{0, 20000}});
    destination.emplace(memories);
    gate.hold(*destination, kA, 0);
    Connection c = connected(2);
    feeder.emplace(std::move(c.source), memories.sources(), std::vector<RankedRun>{},
                   FeederOptions{.bandwidth_limit = 8'000'000});
    fetcher.emplace(std::move(c.destination), *destination, wanted, memories.missing(), true);
    source.emplace(*feeder);
    fetching.emplace(*fetcher);
  }
  Memories memories;
  std::optional<Destination> destination;
  Gate gate;
  WantedPages wanted;
  std::optional<PageFeeder> feeder;
  std::optional<PageFetcher> fetcher;
  std::optional<Running<PageFeeder>> source;
  std::optional<Running<PageFetcher>> fetching;
};

TEST(FeedEnds, CancelledOnEitherSide) {
  for (const bool by_source : {true, false}) {
    HeldFeed feed;
    ASSERT_TRUE(feed.gate.wait_until_held());
    by_source ? feed.feeder->cancel() : feed.fetcher->cancel();
    const std::string here = feed.source->get();
    EXPECT_TRUE(says(here, by_source ? "cancelled: " : "disconnected: ")) << here;
    feed.gate.open();
    const std::string there = feed.fetching->get();
    EXPECT_TRUE(says(there, by_source ? "disconnected: " : "cancelled: ")) << there;
  }
}

TEST(FeedEnds, ASourceThatLeavesSaysWhy) {
  HeldFeed feed;
  ASSERT_TRUE(feed.gate.wait_until_held());
  feed.feeder->leave("the operator has other plans");
  EXPECT_EQ(feed.source->get(), "error: the operator has other plans");
  feed.gate.open();
  const std::string there = feed.fetching->get();
  EXPECT_TRUE(says(there, "failed there: ") && says(there, "the operator has other plans")) << there;
}

TEST(FeedEnds, WhatFailsAtOneSideIsSaidAtTheOther) {
  Memories memories;
  memories.add(kA, {{0, 20000}});
  {
    Connection c = connected();
    Destination destination(memories);
    destination.before_write = [](MemoryId, uint64_t, uint64_t) { throw Error("the memory of task 7 is on fire"); };
    WantedPages wanted;
    PageFeeder feeder(std::move(c.source), memories.sources(), {});
    PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
    Running source(feeder);
    Running fetching(fetcher);
    EXPECT_EQ(fetching.get(), "error: the memory of task 7 is on fire");
    const std::string there = source.get();
    EXPECT_TRUE(says(there, "failed there: ") && says(there, "the memory of task 7 is on fire")) << there;
  }
  check(::ftruncate(memories.sources()[0].fd.get(), page(100)), "cut", "a memfd");
  Connection c = connected();
  Destination destination(memories);
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true);
  Running source(feeder);
  Running fetching(fetcher);
  // Of a destination that understands no more.
  constexpr auto kLost = "pages of task 7 are lost: it has ended here";
  const std::string here = source.get(), there = fetching.get();
  EXPECT_TRUE(says(here, "error: ") && says(here, kLost)) << here;
  EXPECT_TRUE(says(there, "failed there: ") && says(there, kLost)) << there;
}

}  // namespace
}  // namespace migrate::feed_testing
