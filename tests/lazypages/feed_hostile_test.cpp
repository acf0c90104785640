// A feed whose other end breaks the rules: it ends with a sentence, and nothing was touched.
#include "pageserver/codec.h"
#include "tests/lazypages/feed_testing.h"

namespace migrate::feed_testing {
namespace {

using Kind = FeedPacket::Kind;

std::span<std::byte> bytes_of(std::vector<std::byte>& v) { return v; }

/// One end, and whoever sits at the other and says what he likes.
class Peer {
 public:
  explicit Peer(FeedStreams streams) : streams_(std::move(streams)) {}
  void say(FeedPacket packet, std::vector<std::byte> body = {}) {
    packet.sequence = sequence_++;
    std::vector<std::byte> bytes(kFeedPacketSize);
    encode_feed_packet(packet, bytes_of(bytes).first<kFeedPacketSize>());
    bytes.insert(bytes.end(), body.begin(), body.end());
    urgent(bytes);
  }
  void urgent(std::span<const std::byte> bytes) {
    try {
      streams_.urgent->write(bytes);
    } catch (const Error&) {  // it is gone already
    }
  }
  void skip() { ++sequence_; }
  void fill(PageRecord record, std::vector<std::byte> body = {}) {
    std::vector<std::byte> bytes(kPageRecordSize);
    encode_record(record, bytes_of(bytes).first<kPageRecordSize>());
    totals_.add(bytes_of(bytes).first<kPageRecordSize>(), record.pages);
    bytes.insert(bytes.end(), body.begin(), body.end());
    fill(bytes);
  }
  void fill(std::span<const std::byte> bytes) {
    try {
      streams_.fill[0]->write(bytes);
    } catch (const Error&) {
    }
  }
  void end_fill() {
    std::byte bytes[kPageRecordSize];
    encode_record(totals_.end(), bytes);
    fill(std::span<const std::byte>(bytes));
  }
  /// The next packet that is not said for the time that has passed.
  FeedPacket hear() {
    for (;;) {
      const FeedPacket packet = hear_any();
      if (packet.kind != FeedPacket::Kind::ping && packet.kind != FeedPacket::Kind::waits) return packet;
    }
  }
  FeedPacket hear_any() {
    std::byte header[kFeedPacketSize];
    if (!streams_.urgent->read_exact(header)) throw Error("nothing more is said");
    const auto packet = decode_feed_packet(header, FeedSide::destination, "it");
    std::vector<std::byte> body(body_size(packet));
    if (!body.empty() && !streams_.urgent->read_exact(body)) throw Error("nothing more is said");
    return packet;
  }
  FeedStreams& streams() { return streams_; }

 private:
  FeedStreams streams_;
  uint64_t sequence_ = 0;
  StreamTotals totals_;
};

std::vector<std::byte> runs(const std::vector<PageRun>& list) {
  std::vector<std::byte> out;
  encode_runs(list, out);
  return out;
}

std::vector<std::byte> addresses(const std::vector<uint64_t>& list) {
  std::vector<std::byte> out;
  encode_addresses(list, out);
  return out;
}

/// Announced are pages 10 to 19 and 30 to 39 of kA, and 0 to 9 of kShared.
class FeedHostile : public ::testing::Test {
 protected:
  FeedHostile() {
    memories.add(kA, {{page(10), 10}, {page(30), 10}});
    memories.add(kShared, {{0, 10}});
  }
  std::vector<std::byte> contents(MemoryId memory, uint64_t first, uint64_t pages) const {
    const auto at = memories.at(memory, page(first), page(pages));
    return {at.begin(), at.end()};
  }
  Memories memories;
};

/// A destination that misses all that was announced, and has asked for page 10 of kA.
struct Asked {
  explicit Asked(const Memories& memories)
      : destination(memories),
        fetcher(std::move(c.destination), destination, wanted, memories.missing(), true),
        peer(std::move(c.source)),
        fetching(fetcher) {
    EXPECT_EQ(peer.hear().kind, Kind::begin);
    wanted.want(kA, page(10));
    EXPECT_EQ(peer.hear().kind, Kind::request);
  }
  Connection c = connected();
  Destination destination;
  WantedPages wanted;
  PageFetcher fetcher;
  Peer peer;
  Running<PageFetcher> fetching;
};

struct Case {
  const char* what;
  const char* says;
  std::function<void(Peer&)> does;
};

void begin_all(Peer& p) { p.say({.kind = Kind::begin, .value = 30, .all = true}); }
void begin(Peer& p, uint64_t pages) { p.say({.kind = Kind::begin, .value = pages}); }
void request(Peer& p, MemoryId memory, const std::vector<uint64_t>& list) {
  p.say({.kind = Kind::request, .memory = memory, .count = static_cast<uint32_t>(list.size())}, addresses(list));
}
void missing(Peer& p, MemoryId memory, const std::vector<PageRun>& list) {
  p.say({.kind = Kind::missing, .memory = memory, .count = static_cast<uint32_t>(list.size())}, runs(list));
}

TEST_F(FeedHostile, DestinationsAreRefused) {
  const uint64_t far = uint64_t{1} << 56;
  const std::vector<Case> cases{
      {"asks before the beginning", "begin", [](Peer& p) { request(p, kA, {page(10)}); }},
      {"ends before the beginning", "begin", [](Peer& p) { p.say({.kind = Kind::whole}); }},
      {"begins twice", "begins twice", [](Peer& p) { begin(p, 0), begin(p, 0); }},
      {"is something else", "it is none", [](Peer& p) { p.urgent(std::vector<std::byte>(32, std::byte{16})); }},
      {"misses more than there is", "more pages than were announced", [](Peer& p) { begin(p, 31); }},
      {"misses all of something else", "another number",
       [](Peer& p) { p.say({.kind = Kind::begin, .value = 29, .all = true}); }},
      {"misses pages that were not announced", "never announced",
       [](Peer& p) {
         begin(p, 10), missing(p, kA, {{page(20), 1}});
       }},
      {"misses a hole between two runs", "never announced",
       [](Peer& p) {
         begin(p, 30), missing(p, kA, {{page(10), 30}});
       }},
      {"misses a page beyond a run", "never announced",
       [](Peer& p) {
         begin(p, 30), missing(p, kA, {{page(15), 6}});
       }},
      {"misses pages of an unknown memory", "never announced",
       [](Peer& p) {
         begin(p, 1), missing(p, kB, {{0, 1}});
       }},
      {"misses a page twice", "do not ascend",
       [](Peer& p) {
         begin(p, 4), missing(p, kA, {{page(10), 2}, {page(11), 2}});
       }},
      {"misses a page twice in two packets", "in order",
       [](Peer& p) {
         begin(p, 4), missing(p, kA, {{page(10), 2}}), missing(p, kA, {{page(11), 2}});
       }},
      {"lists memories out of order", "in order",
       [](Peer& p) {
         begin(p, 4), missing(p, kShared, {{0, 1}}), missing(p, kA, {{page(10), 1}});
       }},
      {"lists more than it said", "more missing pages",
       [](Peer& p) {
         begin(p, 1), missing(p, kA, {{page(10), 2}});
       }},
      {"lists fewer than it said", "another number",
       [](Peer& p) {
         begin(p, 3), missing(p, kA, {{page(10), 2}}), p.say({.kind = Kind::start, .value = 3});
       }},
      {"starts with another number", "another number",
       [](Peer& p) {
         begin(p, 2), missing(p, kA, {{page(10), 2}}), p.say({.kind = Kind::start, .value = 1});
       }},
      {"lists after the list", "after their end",
       [](Peer& p) {
         begin_all(p), missing(p, kA, {{page(10), 1}});
       }},
      {"starts twice", "twice", [](Peer& p) { begin_all(p), p.say({.kind = Kind::start, .value = 30}); }},
      {"runs of nothing", "out of bounds",
       [](Peer& p) {
         begin(p, 1), missing(p, kA, {{page(10), 0}});
       }},
      {"runs off the pages", "out of bounds",
       [](Peer& p) {
         begin(p, 1), missing(p, kA, {{page(10) + 1, 1}});
       }},
      {"runs beyond all memory", "out of bounds",
       [=](Peer& p) {
         begin(p, 1), missing(p, kA, {{far - page(1), 2}});
       }},
      {"runs around", "out of bounds",
       [](Peer& p) {
         begin(p, 1), missing(p, kA, {{page(10), UINT64_MAX >> 12}});
       }},
      {"an empty list", "count is out of bounds", [](Peer& p) { begin(p, 1), missing(p, kA, {}); }},
      {"a list too long", "count is out of bounds",
       [](Peer& p) { begin(p, 1), p.say({.kind = Kind::missing, .memory = kA, .count = kMostMissingRuns + 1}); }},
      {"asks for what was not announced", "never announced", [](Peer& p) { begin_all(p), request(p, kA, {page(20)}); }},
      {"asks for it among others", "never announced",
       [](Peer& p) {
         begin_all(p), request(p, kA, {page(10), page(11), page(40)});
       }},
      {"asks for a hole of shared memory", "never announced",
       [](Peer& p) { begin_all(p), request(p, kShared, {page(10)}); }},
      {"asks for an unknown memory", "never announced", [](Peer& p) { begin_all(p), request(p, kB, {page(10)}); }},
      {"asks for half a page", "out of bounds", [](Peer& p) { begin_all(p), request(p, kA, {page(10) + 2048}); }},
      {"asks beyond all memory", "out of bounds", [=](Peer& p) { begin_all(p), request(p, kA, {far}); }},
      {"asks for nothing", "count is out of bounds", [](Peer& p) { begin_all(p), request(p, kA, {}); }},
      {"asks for too much at a time", "count is out of bounds",
       [](Peer& p) { begin_all(p), p.say({.kind = Kind::request, .memory = kA, .count = kMostRequested + 1}); }},
      {"speaks as a source", "unknown kind",
       [this](Peer& p) {
         begin_all(p), p.say({.kind = Kind::pages, .memory = kA, .count = 1, .value = page(10)}, contents(kA, 10, 1));
       }},
      {"says that all is done", "unknown kind", [](Peer& p) { begin_all(p), p.say({.kind = Kind::done}); }},
      {"leaves a packet out", "a packet is missing",
       [](Peer& p) { begin_all(p), p.skip(), p.say({.kind = Kind::ping}); }},
      {"an unknown kind of memory", "kind of memory",
       [](Peer& p) {
         begin_all(p), request(p, {static_cast<MemoryId::Kind>(3), 7}, {page(10)});
       }},
      {"a text too long", "count is out of bounds",
       [](Peer& p) { begin_all(p), p.say({.kind = Kind::failed, .count = kMostFeedText + 1}); }},
      {"takes note of what it was not told", "was not told of",
       [](Peer& p) { begin_all(p), p.say({.kind = Kind::gone, .memory = kA}); }},
      {"tells waits of another length", "count is out of bounds",
       [](Peer& p) { begin_all(p), p.say({.kind = Kind::waits, .count = kWaitsWords - 1}); }},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(one.what);
    Connection c = connected();
    PageFeeder feeder(std::move(c.source), memories.sources(), {});
    Peer peer(std::move(c.destination));
    Running source(feeder);
    one.does(peer);
    const std::string end = source.get();
    EXPECT_TRUE(says(end, "corrupt: ") && says(end, one.says)) << end;
    EXPECT_EQ(feeder.counters().requested, 0u);
  }
}

TEST_F(FeedHostile, AFloodOfRequestsEnds) {
  Connection c = connected();
  PageFeeder feeder(std::move(c.source), memories.sources(), {});
  Peer peer(std::move(c.destination));
  Running source(feeder);
  begin_all(peer);
  std::thread reading([&] {
    try {
      std::byte anything[4096];
      while (peer.streams().urgent->read_some(anything) > 0) continue;
    } catch (const Error&) {
    }
  });
  const std::vector<uint64_t> all(kMostRequested, page(10));
  while (!source.ended_within({})) request(peer, kA, all);
  const std::string end = source.get();
  EXPECT_TRUE(says(end, "corrupt: ") && says(end, "more pages than it can miss")) << end;
  reading.join();
}

TEST_F(FeedHostile, SourcesAreRefusedAndNothingIsTouched) {
  const auto pages = [this](MemoryId memory, uint64_t first, uint32_t count, uint64_t sequence = 0) {
    return [=, this](Peer& p) {
      p.fill({.memory = memory, .address = page(first), .pages = count, .sequence = sequence}, contents(kA, 0, count));
    };
  };
  const auto answer = [this](uint64_t first, uint32_t count) {
    return [=, this](Peer& p) {
      p.say({.kind = Kind::pages, .memory = kA, .count = count, .value = page(first)}, contents(kA, 10, count));
    };
  };
  const std::vector<Case> cases{
      {"pages that are not missing", "not missing", pages(kA, 20, 1)},
      {"pages over the end of a run", "not missing", pages(kA, 15, 6)},
      {"pages before a run", "not missing", pages(kA, 9, 3)},
      {"pages of an unknown memory", "not missing", pages(kB, 10, 1)},
      {"pages over a hole", "not missing", pages(kA, 10, 30)},
      {"a record out of order", "a record is missing", pages(kA, 10, 1, 5)},
      {"more pages than announced", "more pages than announced", pages(kA, 10, 31)},
      {"packed pages", "not agreed upon",
       [](Peer& p) {
         p.fill({.kind = PageRecord::Kind::packed,
                 .memory = kA,
                 .address = page(10),
                 .pages = 1,
                 .codec = PageCodec::lz4});
       }},
      {"noise on the fill", "corrupt: ", [](Peer& p) { p.fill(random_bytes(64, 3)); }},
      {"the end, though pages are missing", "have not come", [](Peer& p) { p.end_fill(); }},
      {"totals that are none", "totals differ",
       [](Peer& p) { p.fill(PageRecord{.kind = PageRecord::Kind::end, .total_records = 5}); }},
      {"answers that nobody asked for", "nobody has asked for", answer(12, 1)},
      {"an answer with a page more", "nobody has asked for", answer(10, 2)},
      {"an answer of another memory", "nobody has asked for",
       [this](Peer& p) {
         p.say({.kind = Kind::pages, .memory = kShared, .count = 1, .value = page(10)}, contents(kShared, 0, 1));
       }},
      {"an answer too long", "count is out of bounds",
       [](Peer& p) { p.say({.kind = Kind::pages, .memory = kA, .count = kMostRequested + 1, .value = page(10)}); }},
      {"an empty answer", "count is out of bounds",
       [](Peer& p) { p.say({.kind = Kind::pages, .memory = kA, .value = page(10)}); }},
      {"half a page", "out of bounds",
       [](Peer& p) { p.say({.kind = Kind::pages, .memory = kA, .count = 1, .value = page(10) + 1}); }},
      {"done before it is whole", "done while pages are missing", [](Peer& p) { p.say({.kind = Kind::done}); }},
      {"speaks as a destination", "unknown kind", [](Peer& p) { begin_all(p); }},
      {"says that a page is absent", "unknown kind",
       [](Peer& p) {
         FeedPacket absent{.kind = static_cast<Kind>(24), .count = 1, .value = page(10)};
         p.say(absent);
       }},
      {"says that a task is gone, to who does not understand", "nothing is missing",
       [](Peer& p) { p.say({.kind = Kind::gone, .memory = kA}); }},
      {"says that something else is gone", "kind of memory",
       [](Peer& p) {
         p.say({.kind = Kind::gone, .memory = {static_cast<MemoryId::Kind>(3), 7}});
       }},
      {"leaves a packet out", "a packet is missing", [](Peer& p) { p.skip(), p.say({.kind = Kind::ping}); }},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(one.what);
    Asked asked(memories);
    one.does(asked.peer);
    const std::string end = asked.fetching.get();
    EXPECT_TRUE(says(end, "corrupt: ") && says(end, one.says)) << end;
    EXPECT_TRUE(asked.destination.order().empty());
    EXPECT_EQ(asked.wanted.statistics().waiting, 1u);
  }
}

TEST_F(FeedHostile, OnlyWhatIsMissingCanBeGoneAndOnlyOnce) {
  for (const bool twice : {true, false}) {
    Connection c = connected();
    Peer source(std::move(c.source));
    Destination destination(memories);
    WantedPages wanted;
    std::atomic<int> told = 0;
    PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true,
                        {.gone = [&](MemoryId) { ++told; }});
    Running running(fetcher);
    for (const MemoryId memory : {kA, twice ? kA : kB}) source.say({.kind = Kind::gone, .memory = memory});
    const std::string end = running.get();
    EXPECT_TRUE(says(end, "corrupt: ") && says(end, twice ? "twice" : "nothing is missing")) << end;
    EXPECT_EQ(told, 1);
  }
}

// One that is older than that kind of packet takes it for damage.
TEST_F(FeedHostile, WhoDoesNotUnderstandWaitsIsNotTold) {
  for (const bool understands : {false, true}) {
    Connection c = connected();
    Peer source(std::move(c.source));
    Destination destination(memories);
    WantedPages wanted;
    PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true,
                        {.waits = understands});
    wanted.want(kA, page(10));
    Running running(fetcher);
    bool told = false, whole = false;
    for (int answered = 0; !whole;) {
      const FeedPacket packet = source.hear_any();
      told |= packet.kind == Kind::waits;
      whole = packet.kind == Kind::whole;
      if (packet.kind != Kind::request || answered++ > 0) continue;
      source.say({.kind = Kind::pages, .memory = kA, .count = 1, .value = page(10)}, contents(kA, 10, 1));
      ASSERT_TRUE(destination.wait_for_page(kA, page(10)));
      fetcher.whole();
    }
    EXPECT_EQ(told, understands);
    source.say({.kind = Kind::done, .value = 1});
    EXPECT_EQ(running.get(), "");
  }
}

// It comes by another stream than the fill, whose end can overtake it.
TEST_F(FeedHostile, AnAnswerMayComeAfterTheEndOfTheFill) {
  Asked asked(memories);
  Peer& source = asked.peer;
  source.fill({.memory = kA, .address = page(11), .pages = 9}, contents(kA, 11, 9));
  source.fill({.memory = kA, .address = page(30), .pages = 10, .sequence = 1}, contents(kA, 30, 10));
  source.fill({.memory = kShared, .pages = 10, .sequence = 2}, contents(kShared, 0, 10));
  source.end_fill();
  ASSERT_TRUE(eventually([&] { return asked.fetcher.filled() || asked.fetching.ended_within({}); }));
  ASSERT_TRUE(asked.fetcher.filled()) << asked.fetching.get();
  EXPECT_EQ(asked.destination.missing_pages(), 1u);
  source.say({.kind = Kind::pages, .memory = kA, .count = 1, .value = page(10)}, contents(kA, 10, 1));
  ASSERT_TRUE(asked.destination.wait_for_page(kA, page(10)));
  asked.fetcher.whole();
  FeedPacket::Kind said{};
  while (said != Kind::whole) said = source.hear().kind;
  source.say({.kind = Kind::done, .value = 1});
  EXPECT_EQ(asked.fetching.get(), "");
}

TEST_F(FeedHostile, NothingComesTwice) {
  for (const bool fill : {true, false}) {
    Asked asked(memories);
    Peer& peer = asked.peer;
    for (uint64_t i = 0; i < 2; ++i) {
      if (fill) {
        peer.fill({.memory = kA, .address = page(10), .pages = 3, .sequence = i}, contents(kA, 10, 3));
      } else {
        peer.say({.kind = Kind::pages, .memory = kA, .count = 1, .value = page(10)}, contents(kA, 10, 1));
      }
    }
    const std::string end = asked.fetching.get();
    EXPECT_TRUE(says(end, "corrupt: ") && says(end, fill ? "or came before" : "nobody has asked for")) << end;
    EXPECT_EQ(asked.destination.order().size(), fill ? 3u : 1u);
  }
}

TEST_F(FeedHostile, APeerThatEndsInTheMiddleIsACut) {
  std::vector<std::byte> said(kFeedPacketSize);
  encode_feed_packet({.kind = Kind::begin, .value = 30, .all = true}, bytes_of(said).first<kFeedPacketSize>());
  said.resize(2 * kFeedPacketSize);
  encode_feed_packet({.kind = Kind::request, .memory = kA, .count = 2, .sequence = 1},
                     bytes_of(said).subspan<kFeedPacketSize, kFeedPacketSize>());
  const auto more = addresses({page(10), page(31)});
  said.insert(said.end(), more.begin(), more.end());
  for (size_t size = 0; size <= said.size(); size += 5) {
    Connection c = connected();
    PageFeeder feeder(std::move(c.source), memories.sources(), {});
    Peer peer(std::move(c.destination));
    Running source(feeder);
    peer.urgent(std::span(said).first(size));
    peer.streams() = {};
    const std::string end = source.get();
    EXPECT_TRUE(says(end, "disconnected: ")) << end;
  }
}

TEST_F(FeedHostile, WhoIsSilentIsGoneAndWhoIsSlowIsNot) {
  constexpr std::chrono::milliseconds kSilence{300};
  {
    Connection c = connected();
    PageFeeder feeder(std::move(c.source), memories.sources(), {}, {.silence = kSilence});
    Peer peer(std::move(c.destination));
    const std::string end = end_of(feeder);
    EXPECT_TRUE(says(end, "timed out: ") && says(end, "silent")) << end;
  }
  {
    Connection c = connected();
    Destination destination(memories);
    WantedPages wanted;
    PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true, {.silence = kSilence});
    Peer peer(std::move(c.source));
    const std::string end = end_of(fetcher);
    EXPECT_TRUE(says(end, "timed out: ") && says(end, "silent")) << end;
  }
  // Two that have nothing to say for long: page 10 is never asked for, and the fill is held up.
  Connection c = connected();
  Destination destination(memories);
  c.source.fill[0]->set_idle_timeout(kSilence / 2);
  c.destination.fill[0]->set_idle_timeout(kSilence / 2);
  std::atomic<bool> go = false;
  destination.before_write = [&](MemoryId, uint64_t, uint64_t) { EXPECT_TRUE(eventually([&] { return go.load(); })); };
  WantedPages wanted;
  PageFeeder feeder(std::move(c.source), memories.sources(), {}, {.silence = 5 * kSilence});
  PageFetcher fetcher(std::move(c.destination), destination, wanted, memories.missing(), true,
                      {.silence = 5 * kSilence});
  Running source(feeder);
  Running fetching(fetcher);
  EXPECT_FALSE(source.ended_within(6 * kSilence));
  EXPECT_FALSE(fetching.ended_within({}));
  go = true;
  ASSERT_TRUE(destination.wait_until_whole());
  fetcher.whole();
  EXPECT_EQ(source.get() + fetching.get(), "");
}

}  // namespace
}  // namespace migrate::feed_testing
