// What people and programs see of a migration.
#include "migrate/session/telling/events.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "core/base/fd.h"
#include "migrate/report/report.h"
#include "migrate/session/source/calibration_file.h"
#include "migrate/session/telling/events_pages.h"
#include "migrate/session/telling/events_rounds.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

/// A pseudo-terminal, `columns` wide.
struct Terminal {
  explicit Terminal(unsigned short columns) : master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    check(::grantpt(master.get()), "grantpt");
    check(::unlockpt(master.get()), "unlockpt");
    char name[64];
    check(-::ptsname_r(master.get(), name, sizeof name), "ptsname");
    slave = open_path(name, O_RDWR | O_NOCTTY);
    const winsize size{24, columns, 0, 0};
    check(::ioctl(master.get(), TIOCSWINSZ, &size), "set the size of", "a terminal");
    ::setenv("TERM", "xterm", 1);
  }
  std::string shown() const {
    std::string text;
    for (pollfd p{master.get(), POLLIN, 0}; ::poll(&p, 1, 0) == 1 && (p.revents & POLLIN) != 0;) {
      char buffer[4096];
      const ssize_t n = ::read(master.get(), buffer, sizeof buffer);
      if (n <= 0) break;
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  }
  Fd master, slave;
};

/// Puts `fd` in the place of a standard descriptor for a while.
class Redirected {
 public:
  Redirected(int standard, int fd) : standard_(standard), saved_(check(::dup(standard), "dup")) {
    ::dup2(fd, standard_);
  }
  ~Redirected() { ::dup2(saved_.get(), standard_); }
  Redirected(const Redirected&) = delete;
  Redirected& operator=(const Redirected&) = delete;

 private:
  int standard_;
  Fd saved_;
};

template <class F>
std::string printed(int standard, ReportFormat format, F tell) {
  int ends[2];
  check(::pipe2(ends, O_CLOEXEC), "pipe");
  const Fd out(ends[0]);
  {
    const Fd in(ends[1]);
    const Redirected redirected(standard, in.get());
    PrintedEvents events(format, "send");
    tell(static_cast<Events&>(events));
  }
  std::string text(1 << 16, '\0');
  text.resize(read_full(out.get(), std::as_writable_bytes(std::span(text)), "pipe"));
  return text;
}

RoundMeasure measure() {
  RoundMeasure m;
  m.round = 2;
  m.pages_sent = 1000;
  m.bytes_sent = 4'096'000;
  m.seconds = 0.01;
  m.dirty_pages = 250;
  return m;
}

TEST(Events, ATerminalGetsOneLiveLineThatFits) {
  const Terminal terminal(60);
  {
    const Redirected redirected(2, terminal.slave.get());
    PrintedEvents printed_events(ReportFormat::automatic, "send");
    Events& events = printed_events;
    RoundProgress p{3, 128 << 20, 256 << 20, 800e6, 12'345, 41.2};
    show_round(events, p);
    const std::string live = terminal.shown();
    EXPECT_TRUE(live.starts_with("\r\x1b[Ksend: round 3: 128.0 MiB of 256.0 MiB")) << live;
    EXPECT_EQ(live.find('\n'), std::string::npos);
    EXPECT_LE(live.size(), 59u + 4u) << "longer lines would wrap";
    show_round(events, p);
    EXPECT_EQ(terminal.shown(), "") << "not more often than ten times a second";
    events.event("freeze", "frozen");
    EXPECT_EQ(terminal.shown(), "\r\x1b[Ksend: frozen\r\n");
  }
  EXPECT_EQ(terminal.shown(), "");
}

TEST(Events, TheLiveLineFollowsTheTerminalsWidthAndIsErased) {
  const Terminal terminal(200);
  const Redirected redirected(2, terminal.slave.get());
  RoundProgress p{3, 128 << 20, 256 << 20, 800e6, 12'345, 41.2, 32 << 20};
  for (const unsigned short columns : {200, 30, 12, 2, 1}) {
    {
      PrintedEvents events(ReportFormat::automatic, "send");
      const winsize size{24, columns, 0, 0};
      check(::ioctl(terminal.master.get(), TIOCSWINSZ, &size), "set the size of", "a terminal");
      show_round(events, p);
      const std::string live = terminal.shown();
      EXPECT_LE(live.size(), columns - 1u + 4u) << columns;
      EXPECT_GE(live.size(), std::min<size_t>(columns - 1u, 80) + 4u) << columns;
      if (columns == 200) {
        EXPECT_NE(live.find(", 0.25 of it on the wire, 12.3k pages/s written, downtime ~41.2 ms"), std::string::npos)
            << live;
      }
    }
    EXPECT_EQ(terminal.shown(), "\r\x1b[K") << "it goes when the command ends";
  }
}

TEST(Events, WithoutATerminalThereIsNoLiveLine) {
  const auto tell = [](Events& e) {
    show_round(e, {3, 128 << 20, 256 << 20, 800e6});
    show_pages(e, {.bytes = 1 << 20, .total_bytes = 2 << 20, .wire_bytes = 1 << 20, .bandwidth = 1e6});
    e.event("freeze", "frozen");
  };
  EXPECT_EQ(printed(2, ReportFormat::automatic, tell), "send: frozen\n");
  EXPECT_EQ(printed(2, ReportFormat::lines, tell), "send: frozen\n");
  const Terminal terminal(80);
  ::setenv("TERM", "dumb", 1);
  {
    const Redirected redirected(2, terminal.slave.get());
    PrintedEvents events(ReportFormat::automatic, "send");
    tell(events);
  }
  ::unsetenv("TERM");
  EXPECT_EQ(terminal.shown(), "send: frozen\r\n");
}

TEST(Events, ChoicesOfCodecsTellTheirNumbers) {
  const std::string text = printed(1, ReportFormat::json, [](Events& e) {
    tell_codec(e, {PageCodec::zstd, 3}, false, "");
    tell_codec(e, {}, false, "the destination takes none");
    tell_codec(e, {.from = {},
                   .to = {PageCodec::lz4, 0},
                   .why = "since it gains",
                   .ratio = 0.5,
                   .pack_rate = 8e8,
                   .link_rate = 1e8});
  });
  std::vector<nlohmann::json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0]["codec"], "zstd:3");
  EXPECT_EQ(lines[1]["codec"], "raw");
  EXPECT_EQ(lines[1]["why"], "the destination takes none");
  EXPECT_EQ(lines[2]["codec"], "lz4");
  EXPECT_EQ(lines[2]["before"], "raw");
  EXPECT_EQ(lines[2]["ratio"], 0.5);
  EXPECT_EQ(lines[2]["link_rate"], 1e8);
}

TEST(Events, LinesCannotSteerATerminal) {
  const std::string text = printed(2, ReportFormat::lines, [](Events& e) { e.event("failed", "name \x1b[2J\nx\x9b"); });
  EXPECT_EQ(text, "send: name ?[2J x?\n");
}

TEST(Events, JsonIsOneObjectALine) {
  const Decision decision = PrecopyPolicy({}, {0.01, 0.001, 0.01, 0.005, 0.001}).after_round(measure());
  const std::string text = printed(1, ReportFormat::json, [&](Events& e) {
    tell_round(e, measure(), decision, {7, 9, 120, 3000});
    tell_decision(e, decision);
    tell_throttle(e, 0.4, "cgroup v1 cpu quota");
  });
  std::vector<nlohmann::json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0]["event"], "round");
  EXPECT_EQ(lines[0]["n"], 2);
  EXPECT_EQ(lines[0]["pages"], 1000);
  EXPECT_EQ(lines[0]["zero_pages"], 7);
  EXPECT_EQ(lines[0]["discarded"], 9);
  EXPECT_EQ(lines[0]["scan_us"], 120);
  EXPECT_EQ(lines[0]["ms"], 10.0);
  EXPECT_NEAR(lines[0]["bandwidth"].get<double>(), 409.6e6, 1e3);
  EXPECT_EQ(lines[0]["dirty_pages"], 250);
  EXPECT_NEAR(lines[0]["dirty_rate"].get<double>(), 25'000, 1);
  EXPECT_EQ(lines[1]["decision"], "stop");
  EXPECT_EQ(lines[1]["limit_ms"], 50.0);
  EXPECT_NEAR(
      lines[1]["estimate_ms"].get<double>(),
      lines[1]["fixed_ms"].get<double>() + lines[1]["dirty_ms"].get<double>() + lines[1]["stopped_ms"].get<double>(),
      0.05);
  EXPECT_EQ(lines[2]["cpu_share"], 0.4);
  for (const auto& line : lines)
    EXPECT_TRUE(line["text"].is_string() && line["time"].is_number() && line["side"] == "send");
}

TEST(Events, AReportIsFedFromThemAndFromTheirLines) {
  Report fed;
  const std::string lines = printed(1, ReportFormat::json, [&](Events& printed_events) {
    ReportedEvents reported(printed_events, fed);
    Events& events = reported;
    const Decision decision = PrecopyPolicy({}, {}).after_round(measure());
    events.event("connect", "connected");
    tell_round(events, measure(), decision, {});
    tell_decision(events, decision);
  });
  Report recorded;
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) EXPECT_TRUE(recorded.add_json(line));
  EXPECT_NE(fed.html().find("class=\"round\""), std::string::npos);
  EXPECT_NE(recorded.html().find("class=\"round\""), std::string::npos);
}

TEST(CalibrationFile, KeepsFactorsAPeer) {
  const TempDir dir;
  const FixedCost estimated{0.01, 0.01, 0.01, 0.01};
  Calibration slow;
  for (int i = 0; i < 20; ++i) slow.learn(estimated, {0.02, 0.01, 0.03, 0.01});
  save_calibration(dir.path(), "10.0.0.2:7400", slow);
  save_calibration(dir.path(), "other:7400", {});
  EXPECT_NEAR(load_calibration(dir.path(), "10.0.0.2:7400").apply(estimated).total(), 0.07, 1e-3);
  EXPECT_NEAR(load_calibration(dir.path(), "other:7400").apply(estimated).total(), 0.04, 1e-9);
  EXPECT_NEAR(load_calibration(dir.path(), "unknown").apply(estimated).total(), 0.04, 1e-9);
  for (int i = 0; i < 300; ++i) save_calibration(dir.path(), "host" + std::to_string(i), slow);
  EXPECT_LT(read_file_at(AT_FDCWD, dir.path() + "/calibration.json").size(), 64u << 10)
      << "it does not grow without end";
  for (const char* bad :
       {"", "[1]", "{\"x\": 3}", "{\"unknown\": {\"freeze\": \"a\"}}", "{\"unknown\": {\"freeze\": 1e99}}"}) {
    const Fd file = open_path(dir.path() + "/calibration.json", O_WRONLY | O_TRUNC);
    write_full(file.get(), as_bytes_of(bad), "calibration");
    EXPECT_LE(load_calibration(dir.path(), "unknown").apply(estimated).total(), 0.2) << bad;
  }
  EXPECT_NO_THROW(save_calibration("/nonexistent", "x", slow));
}

TEST(Events, CountsAreShort) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(9'999), "9999");
  EXPECT_EQ(human_count(12'345), "12.3k");
  EXPECT_EQ(human_count(4'100'000), "4.1M");
}

}  // namespace
}  // namespace migrate
