// Texts of /proc: what is no number is told by name, and never taken for one.
#include "core/base/proc_values.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "core/files/net_table.h"

namespace migrate {
namespace {

std::string refused(const std::function<void()>& parse) {
  try {
    parse();
  } catch (const Corrupt& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(ProcValuesTest, NumbersAreThoseOfTheirType) {
  EXPECT_EQ(parse_number(" \t18446744073709551615\n", "x"), UINT64_MAX);
  EXPECT_EQ(parse_number<int32_t>("-1000\n", "x"), -1000);
  EXPECT_EQ(parse_number<uint32_t>("4294967295", "x"), UINT32_MAX);
  EXPECT_EQ(parse_number<int64_t>("-9223372036854775808", "x"), INT64_MIN);
  EXPECT_EQ(parse_number<uint32_t>("0022", "x", 8), 18u);
  EXPECT_EQ(parse_number("0x1f", "x", 16), 31u);
  EXPECT_EQ(parse_number("00000000ffffffff", "x", 16), UINT32_MAX);
  EXPECT_EQ(parse_first_number(" 12 kB", "x"), 12u);
  EXPECT_EQ(parse_numbers<uint32_t>("0\t1000 4294967295 \n", "x"), (std::vector<uint32_t>{0, 1000, UINT32_MAX}));
  EXPECT_TRUE(parse_numbers(" \n", "x").empty());
  EXPECT_EQ(innermost("4242\t17\t1"), 1);
  EXPECT_EQ(innermost(""), 0);
}

TEST(ProcValuesTest, WhatIsNoNumberIsToldByName) {
  for (const char* text : {"", " ", "-1", "+1", "12x", "x12", "1 2", "0x1f", "18446744073709551616", "1.5", "\xff"}) {
    const std::string told = refused([&] { parse_number(text, "/proc/PID/it"); });
    EXPECT_NE(told.find("/proc/PID/it"), std::string::npos) << "'" << text << "': " << told;
  }
  for (const char* text : {"4294967296", "-1"})
    EXPECT_NE(refused([&] { parse_number<uint32_t>(text, "/proc/PID/it"); }).find("/proc/PID/it"), std::string::npos);
  for (const char* text : {"2147483648", "-2147483649", "--1", "-"})
    EXPECT_NE(refused([&] { parse_number<int32_t>(text, "/proc/PID/it"); }).find("/proc/PID/it"), std::string::npos);
  EXPECT_THROW(parse_numbers<int32_t>("1 2 x", "x"), Corrupt);
  EXPECT_THROW(parse_first_number("", "x"), Corrupt);
  EXPECT_THROW(innermost("1 -"), Corrupt);
  const StatusFields status = parse_status("Name:\ta\n");
  EXPECT_NE(refused([&] { status_field(status, "Umask"); }).find("Umask"), std::string::npos);
}

TEST(ProcValuesTest, ClockOffsets) {
  const ClockOffsetsText offsets = parse_clock_offsets("monotonic      -2         5\nboottime        3 999999999\n");
  EXPECT_EQ(offsets.monotonic_ns, -1'999'999'995);
  EXPECT_EQ(offsets.boottime_ns, 3'999'999'999);
  for (const char* text : {"monotonic 9223372036 0\n", "monotonic -9223372036854775808 0\n", "monotonic 0 1000000000\n",
                           "monotonic 0 -1\n", "monotonic\n", "monotonic 0\n"})
    EXPECT_THROW(parse_clock_offsets(text), Corrupt) << text;
}

TEST(ProcValuesTest, LinesOfNetTables) {
  const std::string state = " 0A 00000000:00000000 00:00000000 00000000  1000        0 77 1 0 100 0";
  const std::string rest = " 0200007F:0050" + state;
  const NetTableLine four = parse_net_table_line("   0: 0100007F:07E8" + rest, AF_INET);
  EXPECT_EQ(four.peer_address, std::string("\x7f\0\0\x02", 4));
  EXPECT_EQ(four.peer_port, 80);
  EXPECT_EQ(four.address, std::string("\x7f\0\0\x01", 4));
  EXPECT_EQ(four.port, 2024);
  EXPECT_EQ(four.state, TCP_LISTEN);
  EXPECT_EQ(four.inode, 77u);
  const std::string six = "   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000" + state;
  EXPECT_EQ(parse_net_table_line(six, AF_INET6).address, std::string(15, '\0') + '\x01');
  EXPECT_THROW(parse_net_table_line(six, AF_INET), Corrupt);
  for (const char* local : {"0100007F:", "0100007F", "-100007F:07E8", "0100007F:107E8", "0100007F:-7E8", ""})
    EXPECT_THROW(parse_net_table_line("   0: " + std::string(local) + rest, AF_INET), Corrupt) << local;
}

TEST(ProcValuesTest, TheKernelsOwnTextsAreUnderstood) {
  const ProcDir self(::getpid());
  const StatusFields status = self.status();
  EXPECT_EQ(parse_numbers<uint32_t>(status_field(status, "Uid"), "Uid").size(), 4u);
  EXPECT_NO_THROW(parse_numbers<uint32_t>(status_field(status, "Groups"), "Groups"));
  EXPECT_EQ(innermost(status_field(status, "NSpid")), ::getpid());
  EXPECT_GT(parse_first_number(status_field(status, "VmRSS"), "VmRSS"), 0u);
  EXPECT_GT(parse_first_number(self.read("statm"), "statm"), 0u);
  EXPECT_NO_THROW(parse_number<uint32_t>(self.read("personality"), "personality", 16));
  EXPECT_NO_THROW(parse_number<int32_t>(self.read("oom_score_adj"), "oom_score_adj"));
  EXPECT_NO_THROW(parse_number<uint32_t>(self.read("coredump_filter"), "coredump_filter", 16));
  EXPECT_NO_THROW(parse_number(self.read("timerslack_ns"), "timerslack_ns"));
  EXPECT_NO_THROW(parse_clock_offsets(self.read("timens_offsets")));
}

}  // namespace
}  // namespace migrate
