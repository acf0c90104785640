// Clocks, read by system call and through the vDSO, never go back, go on from where they were, and agree.
#include <sys/time.h>

#include <string>
#include <thread>

#include "workload.h"

using namespace workload;

namespace {

int64_t raw_ns(clockid_t clock) {
  timespec t{};
  syscall(SYS_clock_gettime, clock, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

struct Clock {
  clockid_t id;
  const char* name;
};
constexpr Clock kClocks[] = {{CLOCK_MONOTONIC, "CLOCK_MONOTONIC"},
                             {CLOCK_BOOTTIME, "CLOCK_BOOTTIME"},
                             {CLOCK_MONOTONIC_RAW, "CLOCK_MONOTONIC_RAW"},
                             {CLOCK_MONOTONIC_COARSE, "CLOCK_MONOTONIC_COARSE"}};

std::atomic<int64_t> g_longest_gap{0};
std::atomic<const char*> g_backwards{nullptr};
std::atomic<uint64_t> g_turns{0};

/// Reads all clocks without pause; gettimeofday and clock_gettime stay in the vDSO.
void watch() {
  int64_t last[4] = {};
  for (;;) {
    for (int i = 0; i < 4; ++i) {
      const int64_t now = now_ns(kClocks[i].id);
      if (now < last[i]) g_backwards = kClocks[i].name;
      if (i == 0 && last[0] != 0 && now - last[0] > g_longest_gap) g_longest_gap = now - last[0];
      last[i] = now;
    }
    timeval t{};
    gettimeofday(&t, nullptr);
    if (t.tv_sec < 1'500'000'000) g_backwards = "gettimeofday";
    ++g_turns;
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int64_t started = now_ns(), real = now_ns(CLOCK_REALTIME);
        std::thread(watch).detach();
        w.serve([&] {
          const uint64_t turns = g_turns;
          await([&] { return g_turns > turns; }, "the watcher");
          if (const char* name = g_backwards) throw std::runtime_error(std::string(name) + " went back");
          for (const Clock& c : kClocks) {
            const int64_t a = raw_ns(c.id), b = now_ns(c.id), d = raw_ns(c.id);
            // The coarse clock moves by ticks.
            expect(b - a > -20'000'000 && d - b > -20'000'000 && d - a < 500'000'000,
                   std::string(c.name) + " of the vDSO and of the system call differ");
          }
          const int64_t passed = now_ns() - started, real_passed = now_ns(CLOCK_REALTIME) - real;
          expect(passed <= real_passed + 1'000'000'000, "CLOCK_MONOTONIC jumped forwards");
          expect(g_longest_gap < int64_t{15} * 1'000'000'000,
                 "CLOCK_MONOTONIC jumped by " + std::to_string(g_longest_gap / 1'000'000) + " ms");
        });
      },
      argv[0]);
}
