// What the choice of a codec makes of simulated streams: a link, a processor, contents.
#include "pageserver/codec_chooser.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace migrate {
namespace {

/// One stream that reads, packs and sends while the socket's buffer drains.
struct Simulation {
  double link = 1e9;  ///< bytes/s
  double read = 0.3e-9, send = 0.7e-9;
  double lz4_ratio = 0.5, zstd_ratio = 0.25;
  double lz4_cost = 1.2e-9, zstd_cost = 2.5e-9;  ///< seconds a raw byte
  double slower = 1;                             ///< what packing takes from everything else (processors are few)

  CodecChooser chooser;
  SocketQueue socket;
  std::chrono::steady_clock::time_point now = std::chrono::steady_clock::time_point{} + std::chrono::hours(1);
  double queued = 0, sent = 0, seconds = 0;
  std::vector<CodecChange> changes;

  Simulation() { chooser.configure(*parse_compression("auto"), {.lz4 = true, .zstd = true}); }

  void record() {
    constexpr double kRecord = 128 << 10, kBuffer = 2 << 20;
    const CodecChoice choice = chooser.next();
    const bool lz4 = choice.codec == PageCodec::lz4, zstd = choice.codec == PageCodec::zstd;
    const double ratio = lz4 ? lz4_ratio : zstd ? zstd_ratio : 1;
    const double load = choice.codec == PageCodec::raw ? 1 : slower;
    RecordCost cost{.tried = choice, .raw = static_cast<uint64_t>(kRecord)};
    cost.packed = static_cast<uint64_t>(ratio * kRecord);
    cost.wire = cost.packed;
    cost.read = read * load * kRecord;
    cost.pack = (lz4 ? lz4_cost : zstd ? zstd_cost : 0) * kRecord;
    cost.send = send * load * static_cast<double>(cost.wire);
    const double busy = cost.read + cost.pack + cost.send;
    queued = std::max(0.0, queued + static_cast<double>(cost.wire) - busy * link / load);
    if (queued > kBuffer) {
      cost.wait = (queued - kBuffer) / link * load;
      queued = kBuffer;
    }
    seconds += busy + cost.wait;
    sent += kRecord;
    now += std::chrono::nanoseconds(static_cast<int64_t>((busy + cost.wait) * 1e9));
    socket.sent(cost.wire, cost.raw, now);
    cost.left = socket.holds(static_cast<uint64_t>(queued));
    cost.oldest = socket.oldest(now);
    chooser.add(cost, now);
    for (const CodecChange& change : chooser.take_changes()) changes.push_back(change);
  }
  /// Raw bytes a second.
  double run(double time) {
    const double began = seconds, had = sent;
    while (seconds < began + time) record();
    return (sent - had) / (seconds - began);
  }
};

TEST(CodecChoices, FastLinkGoesRaw) {
  Simulation s;
  s.link = 3e9;
  const double rate = s.run(10);
  EXPECT_EQ(s.chooser.current().codec, PageCodec::raw);
  EXPECT_TRUE(s.changes.empty());
  EXPECT_GT(rate, 0.98 * 1e9);
}

TEST(CodecChoices, GigabitGoesPacked) {
  Simulation s;
  s.link = 117e6;
  s.run(3);
  EXPECT_EQ(text_of(s.chooser.current()), "zstd:1");
  ASSERT_FALSE(s.changes.empty());
  EXPECT_NEAR(s.changes.back().ratio, 0.25, 0.01);
  EXPECT_NEAR(s.changes.back().link_rate, 117e6, 12e6);
  const double rate = s.run(10);  // zstd is bound by the processor here
  EXPECT_GT(rate, 0.95 * 1 / (0.3e-9 + 2.5e-9 + 0.25 * 0.7e-9));
}

TEST(CodecChoices, BetweenThemLz4) {
  Simulation s;
  s.link = 400e6;
  s.run(3);
  EXPECT_EQ(text_of(s.chooser.current()), "lz4");
  EXPECT_GT(s.run(20), 1.25 * 400e6);
}

TEST(CodecChoices, NoiseGoesRawAtLittleCost) {
  Simulation s;
  s.link = 117e6;
  s.lz4_ratio = s.zstd_ratio = 1;
  EXPECT_GT(s.run(10), 0.98 * 117e6);
  EXPECT_EQ(s.chooser.current().codec, PageCodec::raw);
  EXPECT_TRUE(s.changes.empty());
}

TEST(CodecChoices, WhatDoesNotMeasureBetterIsGivenUp) {
  Simulation s;
  s.link = 400e6;
  s.slower = 2.5;  // the peer shares our processors: packing slows the link down
  const double rate = s.run(60);
  EXPECT_GT(rate, 0.95 * 400e6);
  EXPECT_EQ(s.chooser.current().codec, PageCodec::raw);
  EXPECT_GE(s.changes.size(), 2u);
  EXPECT_LE(s.changes.size(), 20u);
}

TEST(CodecChoices, FollowsTheLinkAndTheContents) {
  Simulation s;
  s.link = 50e6;
  s.run(5);
  EXPECT_EQ(text_of(s.chooser.current()), "zstd:1");
  s.link = 3e9;  // as fast as can be: found out by a window of raw pages
  s.run(30);
  EXPECT_EQ(s.chooser.current().codec, PageCodec::raw);
  s.link = 50e6;
  s.run(10);
  EXPECT_EQ(text_of(s.chooser.current()), "zstd:1");
  s.lz4_ratio = s.zstd_ratio = 1;
  s.lz4_cost = s.zstd_cost = 0.2e-9;
  EXPECT_GT(s.run(10), 0.97 * 50e6);
}

TEST(CodecChoices, LiftedLimit) {
  Simulation s;
  s.link = 50e6;
  s.run(5);
  EXPECT_NEAR(s.chooser.rate_at(50e6), 50e6 / 0.25, 20e6);
  EXPECT_NEAR(s.chooser.rate_at(10e9), 1e9, 50e6);  // raw, then
  s.chooser.set_link(10e9);
  EXPECT_EQ(s.chooser.current().codec, PageCodec::raw);
}

TEST(CodecChoices, AFixedOneStays) {
  CodecChooser chooser;
  chooser.configure(*parse_compression("zstd:3"), {.lz4 = true, .zstd = true});
  EXPECT_EQ(text_of(chooser.next()), "zstd:3");
  chooser.configure(*parse_compression("zstd:3"), {.lz4 = true});
  EXPECT_EQ(text_of(chooser.next()), "raw");
  chooser.configure(*parse_compression("auto"), {});
  EXPECT_EQ(text_of(chooser.next()), "raw");
  EXPECT_FALSE(chooser.automatic());
}

}  // namespace
}  // namespace migrate
