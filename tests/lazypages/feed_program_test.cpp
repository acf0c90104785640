// A program that does everything to its memory while that comes from a source whose connection is cut again and again.
#include "lazypages/lazy_memories.h"
#include "tests/lazypages/feed_testing.h"
#include "tests/lazypages/lazy_walk.h"

namespace migrate::feed_testing {
namespace {

/// Calls something before each write.
class Tap : public PageSink {
 public:
  Tap(PageSink& sink, std::function<void()> before) : sink_(sink), before_(std::move(before)) {}
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    before_();
    sink_.write(memory, address, data);
  }

 private:
  PageSink& sink_;
  std::function<void()> before_;
};

PageSource source_of(const LazyMemory& memory, uint64_t base) {
  PageSource source{.memory = memory.memory, .runs = memory.missing};
  source.fd = Fd(check(::memfd_create("pages", MFD_CLOEXEC), "make", "memfd"));
  for (const PageRun& run : memory.missing)
    for (uint64_t at = run.address; at < run.address + run.pages * kPageSize; at += kPageSize) {
      std::array<uint64_t, 512> words;
      for (uint64_t w = 0; w < 512; ++w) words[w] = lazy_testing::word_of((at - base) / kPageSize, w);
      pwrite_full(source.fd.get(), std::as_bytes(std::span(words)), at, "memfd");
    }
  return source;
}

/// Feeds until all is whole, over as many connections as it takes; returns how many were cut.
uint64_t feed_over_cuts(LazyMemories& memories, std::span<const PageSource> sources, WantedPages& wanted,
                        const MissingRuns& announced) {
  uint64_t cuts = 0;
  for (bool first = true; !memories.whole(); first = false) {
    Connection c = connected(2);
    std::atomic<int64_t> writes = 0;
    Stream* cut = cuts % 2 == 0 ? c.source.urgent.get() : c.destination.fill[cuts / 2 % 2].get();
    Tap tap(memories, [&, end = static_cast<int64_t>(1 + cuts * 7 % 40)] {
      if (++writes == end) cut->abort();
    });
    PageFeeder feeder(std::move(c.source), sources, {}, {.bandwidth_limit = 3'000'000});
    PageFetcher fetcher(std::move(c.destination), tap, wanted, first ? announced : memories.missing(), first);
    Running source(feeder);
    Running fetching(fetcher);
    EXPECT_TRUE(eventually([&] { return memories.whole() || fetching.ended_within({}); }));
    const bool whole = memories.whole();
    if (whole) fetcher.whole();
    if (!whole && !fetching.ended_within({})) return cuts;  // it hangs
    const std::string a = source.get(), b = fetching.get();
    if (!whole) ++cuts;
    EXPECT_TRUE(whole || (says(a, "disconnected: ") && says(b, "disconnected: "))) << a << "; " << b;
  }
  return cuts;
}

TEST(FeedProgram, KnowsEveryByteOverManyCuts) {
  uint64_t cuts = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE(seed);
    constexpr uint64_t kPages = 600;
    lazy_testing::LazyProgram program(kPages, [&](char* base, lazy_testing::Talk& talk) {
      return lazy_testing::Walk(base, kPages, seed, talk).run(400, 0);
    });
    std::vector<LazyMemory> all;
    all.push_back(program.register_memory());
    std::vector<PageSource> sources;
    sources.push_back(source_of(all[0], program.base()));
    const MissingRuns announced{{all[0].memory, all[0].missing}};
    WantedPages wanted;
    LazyMemories memories(std::move(all), [&](MemoryId m, uint64_t at) { wanted.want(m, at); });
    std::jthread loop([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) memories.serve(std::chrono::milliseconds(20));
    });
    program.go();
    cuts += feed_over_cuts(memories, sources, wanted, announced);
    const int status = program.ended();
    EXPECT_EQ(status, 0) << program.talk().trouble.data() << " after " << program.talk().progress << " steps; "
                         << memories.missing_pages() << " pages missing";
    if (HasFailure()) return;
  }
  EXPECT_GT(cuts, 10u);
}

}  // namespace
}  // namespace migrate::feed_testing
