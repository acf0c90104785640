// A migration with everything that a report can show.
#pragma once

#include "migrate/report/report.h"

namespace migrate::testing_report {

inline void add_round(Report& r, double end, int64_t n, double ms, int64_t pages, double bandwidth, double dirty_rate,
                      double estimate_ms) {
  r.add("round", "round " + std::to_string(n),
        {{"n", n},
         {"pages", pages},
         {"zero_pages", int64_t{n == 0 ? 41'000 : 0}},
         {"discarded", int64_t{n * 3}},
         {"bytes", int64_t{pages * 4096}},
         {"ms", ms},
         {"bandwidth", bandwidth},
         {"dirty_pages", static_cast<int64_t>(dirty_rate * ms / 1e3)},
         {"dirty_rate", dirty_rate},
         {"estimate_ms", estimate_ms}},
        end);
  r.add("decide", "go-on: estimated downtime over the limit", {{"decision", std::string("go-on")}, {"limit_ms", 50.0}},
        end);
}

inline Report sample_migration() {
  Report r;
  const double t = 1'700'000'000;
  r.add("connect", "connected to 10.0.0.2:7400 (destination), TLSv1.3 TLS_AES_128_GCM_SHA256", {}, t);
  r.add("checks", "checked: 23 files, 1 ports, 1 tasks", {}, t + 0.05);
  add_round(r, t + 1.16, 0, 1100, 262'144, 930e6, 210'000, 690);
  add_round(r, t + 1.86, 1, 680, 150'000, 910e6, 230'000, 500);
  r.add("throttle", "the program gets 60 % of its CPU time (cgroup v1 cpu)", {{"cpu_share", 0.6}}, t + 1.87);
  add_round(r, t + 2.31, 2, 440, 101'000, 940e6, 140'000, 240);
  add_round(r, t + 2.56, 3, 240, 54'000, 921e6, 141'000, 130);
  r.add("throttle", "the program gets 40 % of its CPU time (cgroup v1 cpu)", {{"cpu_share", 0.4}}, t + 2.57);
  add_round(r, t + 2.67, 4, 100, 24'000, 980e6, 80'000, 44);
  r.add("freeze", "frozen in 7.1 ms", {{"freeze_ms", 7.1}, {"pages", int64_t{6000}}}, t + 2.679);
  r.add("pages", "23.4 MiB sent", {{"bytes", int64_t{6000 * 4096}}}, t + 2.706);
  r.add("ready", "the destination holds 1 tasks at its gate", {}, t + 2.714);
  r.add("gate-open", "pid:8906 (redis-server) runs at the destination", {{"downtime_ms", 46.9}}, t + 2.719);
  r.add("done", "moved pid:8906 (redis-server): downtime 46.9 ms (estimated 44.0 ms)",
        {{"downtime_ms", 46.9},
         {"freeze_ms", 7.1},
         {"shells_ms", 1.2},
         {"pages_ms", 25.4},
         {"restore_ms", 8.3},
         {"handover_ms", 4.9}},
        t + 2.75);
  return r;
}

/// What is added to a migration when a sixth of its memory follows.
inline void add_late(Report& r, double t) {
  r.add("switch", "it runs there; 64.0 MiB of its memory are still here, and follow", {{"pages", int64_t{16'384}}}, t);
  for (int i = 1; i < 10; ++i)
    r.add("progress", "feeding",
          {{"phase", std::string("feed")},
           {"left", int64_t{(64 - i * 7) << 20}},
           {"requested", int64_t{i * 30}},
           {"waited_for", int64_t{i * 30}},
           {"waiting", int64_t{1}},
           {"stalls_ms", i * (i % 3) * 4.0}},
          t + 0.2 * i);
  r.add("cut", "the feed was cut: the peer is gone; trying to connect again", {}, t + 1.3);
  r.add("whole", "the destination has all of it",
        {{"ms", 2000.0},
         {"pages_pushed", int64_t{16'200}},
         {"pages_requested", int64_t{300}},
         {"waited_for", int64_t{290}},
         {"waited_until_answer", int64_t{280}},
         {"waited_until_fill", int64_t{10}},
         {"wait_median_us", int64_t{113}},
         {"wait_99_us", int64_t{870}},
         {"wait_longest_us", int64_t{24'000}},
         {"stalls_ms", 96.0}},
        t + 2);
}

}  // namespace migrate::testing_report
