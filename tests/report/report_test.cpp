// Reports: well-formed, escaped, and drawn also from events that make no sense.
#include "migrate/report/report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "migrate/report/story.h"
#include "migrate/report/svg.h"
#include "migrate/report/text.h"
#include "sample.h"
#include "well_formed.h"

namespace migrate {
namespace {

using testing_report::sample_migration;
using testing_report::why_malformed;

size_t count_of(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++n;
  return n;
}

TEST(Report, IsOneWellFormedPageWithoutAnythingFromElsewhere) {
  const std::string page = sample_migration().html();
  EXPECT_EQ(why_malformed(page), "");
  EXPECT_EQ(count_of(page, "<svg "), 2u);
  EXPECT_EQ(count_of(page, "<script"), 0u);
  EXPECT_EQ(count_of(page, "src="), 0u);
  EXPECT_EQ(count_of(page, "href="), 0u);
  EXPECT_EQ(count_of(page, "url("), 0u);
  EXPECT_EQ(count_of(page, "class=\"round\""), 5u);
  for (const char* text :
       {"MiB/s", "pages/s", "time, s", "limit 50 ms", "hand-over", "CPU 60 %", "downtime if stopped now"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text;
  }
}

TEST(Report, ShowsWhatCameWhenItRanThere) {
  Report r = sample_migration();
  testing_report::add_late(r, 1'700'000'002.8);
  const std::string page = r.html();
  EXPECT_EQ(why_malformed(page), "");
  EXPECT_EQ(count_of(page, "class=\"late\""), 1u);
  for (const char* text : {"64 MiB", "still to come when it runs there, MiB", "waits for pages of over 3 ms", ">cut<",
                           "113 µs", "870 µs", "96 ms", "16200 pages", "290 pages"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text;
  }
}

TEST(Report, OfALongFeedItKeepsSomeSamplesFromBeginToEnd) {
  Report r;
  r.add("switch", "it runs there", {{"pages", int64_t{1'000'000}}}, 0);
  for (int i = 0; i < 100'000; ++i)
    r.add("progress", "feeding", {{"phase", std::string("feed")}, {"left", int64_t{100'000 - i}}}, i * 0.2);
  r.add("failed", "the end", {}, 20'000);
  const std::string page = r.html();
  EXPECT_EQ(why_malformed(page), "");
  EXPECT_LT(page.size(), 200'000u);
}

TEST(Report, WhatOthersChoseIsEscaped) {
  Report r;
  const std::string nasty = "</title><script>alert(\"1\")</script>&lt;'\x1b[2J\n\xff\xc2\x9b";
  r.add(nasty, nasty, {{nasty, nasty}, {"n", nasty}}, 1);
  r.add("round", nasty, {{"n", int64_t{1}}, {"ms", 3.0}, {"bandwidth", 1e6}, {"bytes", int64_t{3000}}}, 2);
  const std::string page = r.html();
  EXPECT_EQ(why_malformed(page), "");
  EXPECT_EQ(count_of(page, "<script"), 0u);
  EXPECT_EQ(page.find('\x1b'), std::string::npos);
  EXPECT_EQ(page.find('\xff'), std::string::npos);
  EXPECT_NE(page.find("&lt;/title&gt;&lt;script&gt;alert(&quot;1&quot;)"), std::string::npos);
}

TEST(Report, NothingAndLittleAreDrawnToo) {
  EXPECT_EQ(why_malformed(Report().html()), "");
  Report failed;
  failed.add("connect", "connected", {}, 10);
  failed.add("freeze", "frozen", {{"freeze_ms", 5.0}}, 11);
  failed.add("failed", "the peer is gone", {}, 12);
  const std::string page = failed.html();
  EXPECT_EQ(why_malformed(page), "");
  EXPECT_NE(page.find("stood still"), std::string::npos);
}

TEST(Report, NumbersWithoutSenseBreakNothing) {
  std::mt19937 random(3);
  const double values[] = {0, -1, 1e-300, 1e300, INFINITY, NAN, 42, 1e18};
  const auto any = [&] { return values[random() % std::size(values)]; };
  const char* names[] = {"round", "freeze", "pages", "gate-open", "done", "throttle", "decide", "failed"};
  const char* fields[] = {"n",           "ms",        "bandwidth",   "bytes",       "dirty_rate",
                          "estimate_ms", "freeze_ms", "downtime_ms", "handover_ms", "pages_ms",
                          "cpu_share",   "limit_ms",  "pages"};
  for (int i = 0; i < 500; ++i) {
    Report r;
    for (unsigned e = random() % 12; e > 0; --e) {
      ReportFields f;
      for (const char* field : fields) {
        if (random() % 2 == 0) f.emplace_back(field, any());
      }
      r.add(names[random() % std::size(names)], "x", f, any());
    }
    const std::string page = r.html();
    ASSERT_EQ(why_malformed(page), "") << i;
    for (const char* bad : {"=\"nan", "=\"inf", "=\"-inf", ",nan", ",inf"})
      ASSERT_EQ(page.find(bad), std::string::npos) << i;
  }
}

TEST(Report, ComesOutTheSameFromRecordedLines) {
  Report r;
  EXPECT_TRUE(r.add_json(
      R"({"event":"round","side":"send","time":12.5,"text":"round 0","n":0,"bytes":1048576,"ms":10.5,"bandwidth":1e8})"));
  EXPECT_FALSE(r.add_json("round 0"));
  EXPECT_FALSE(r.add_json("{}"));
  EXPECT_FALSE(r.add_json("[1,2]"));
  EXPECT_FALSE(r.add_json(R"({"event":1,"time":2,"text":"x"})"));
  Report direct;
  direct.add("round", "round 0", {{"n", int64_t{0}}, {"bytes", int64_t{1048576}}, {"ms", 10.5}, {"bandwidth", 1e8}},
             12.5);
  EXPECT_EQ(r.html(), direct.html());
}

TEST(Report, IsWrittenOrSaysWhyNot) {
  char folder[] = "/tmp/migrate-report-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string path = std::string(folder) + "/r.html";
  Report().write(path);
  const Report full = sample_migration();
  full.write(path);
  EXPECT_EQ(read_file_at(AT_FDCWD, path), full.html());
  Report().write(path);
  EXPECT_EQ(read_file_at(AT_FDCWD, path), Report().html()) << "a longer page before leaves nothing";
  ::unlink(path.c_str());
  ::rmdir(folder);
  try {
    full.write(path);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(path), std::string::npos);
  }
}

TEST(Story, PartsOfTheDowntimeAndWhereTheLastPagesWent) {
  Report r;
  std::vector<ReportEvent> events{
      {"connect", "", {}, 100},
      {"freeze", "", {{"freeze_ms", 10.0}}, 101},
      {"pages", "", {{"bytes", int64_t{4096}}}, 101.02},
      {"gate-open", "", {{"downtime_ms", 50.0}}, 101.04},
      {"done",
       "moved",
       {{"downtime_ms", 50.0}, {"freeze_ms", 10.0}, {"pages_ms", 20.0}, {"restore_ms", 20.0}},
       101.05}};
  const Story s = tell(events);
  EXPECT_TRUE(s.moved);
  EXPECT_NEAR(s.downtime(), 0.05, 1e-9);
  ASSERT_EQ(s.parts.size(), 3u);
  EXPECT_EQ(s.parts[1].name, "pages");
  ASSERT_TRUE(s.stopped_send);
  EXPECT_NEAR(s.stopped_send->begin, 1.0, 1e-6);
  EXPECT_NEAR(s.stopped_send->end, 1.02, 1e-6);
}

TEST(Axis, TicksAreRoundAndCoverTheValues) {
  for (const double most : {0.003, 0.9, 1.0, 7.0, 50.0, 1234.0, 9.9e9}) {
    const Axis a = Axis::linear(most, 100, 0, 4);
    EXPECT_GE(a.most(), most * 0.999) << most;
    EXPECT_LE(a.most(), most * 2.1) << most;
    EXPECT_GE(a.ticks().size(), 3u) << most;
    EXPECT_LE(a.ticks().size(), 7u) << most;
    EXPECT_DOUBLE_EQ(a.at(0), 100);
    EXPECT_DOUBLE_EQ(a.at(a.most()), 0);
    EXPECT_DOUBLE_EQ(a.at(1e300), 0);
  }
  const Axis log = Axis::logarithmic(2, 900, 0, 300);
  EXPECT_EQ(log.ticks(), (std::vector<double>{1, 10, 100, 1000}));
  EXPECT_NEAR(log.at(10), 100, 1e-6);
}

TEST(Text, NumbersAreShort) {
  EXPECT_EQ(short_number(0.5), "0.5");
  EXPECT_EQ(short_number(20), "20");
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(1.25), "1.25");
  EXPECT_EQ(short_number(12345), "12345");
  EXPECT_EQ(short_seconds(0.0123), "12.3 ms");
  EXPECT_EQ(short_seconds(0.00095), "950 µs");
  EXPECT_EQ(short_seconds(2.5), "2.5 s");
  EXPECT_EQ(short_bytes(1.5 * (1 << 30)), "1.5 GiB");
}

TEST(Text, PrintableKeepsLettersAndCutsByCharacters) {
  EXPECT_EQ(printable_text("größe µs"), "größe µs");
  EXPECT_EQ(printable_text("größe", 3), "grö");
  EXPECT_EQ(printable_text("a\x1b[31m\nb\x7f"), "a?[31m b?");
  EXPECT_EQ(printable_text("\xc3"), "?");
  EXPECT_EQ(printable_text("\xed\xa0\x80"), "???");  // a surrogate
  EXPECT_EQ(printable_text("\xf0\x9f\x9a\x80"), "\xf0\x9f\x9a\x80");
}

}  // namespace
}  // namespace migrate
