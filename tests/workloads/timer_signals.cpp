// POSIX timers whose signal is queued, since it is blocked: it comes once, with what it says, however the timer goes
// on, and expirations that found it queued are counted as its overruns. What timer_getoverrun(2) says stays, too.
#include <csignal>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr int64_t kMs = 1'000'000, kHour = int64_t{3600} * 1000 * kMs;

struct Timer {
  const char* what;
  clockid_t clock;
  int notify, signal;
  int64_t interval;
  timer_t id;
};

timespec to_timespec(int64_t ns) { return {ns / 1'000'000'000, ns % 1'000'000'000}; }

sigset_t set_of(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  return set;
}

/// The next one queued; 0: none.
int take(int signal, siginfo_t& info) {
  const sigset_t set = set_of(signal);
  const timespec none{};
  const int got = sigtimedwait(&set, &info, &none);
  return got == -1 ? 0 : got;
}

void make(Timer& t, int value) {
  sigevent e{};
  e.sigev_notify = t.notify;
  e.sigev_signo = t.signal;
  e.sigev_value.sival_int = value;
  e._sigev_un._tid = static_cast<int>(syscall(SYS_gettid));
  must(timer_create(t.clock, &e, &t.id), t.what);
}

void expire(const Timer& t) {
  const itimerspec at{to_timespec(t.interval), to_timespec(1)};
  must(timer_settime(t.id, 0, &at, nullptr), "timer_settime");
  await(
      [&] {
        sigset_t pending;
        must(sigpending(&pending), "sigpending");
        return sigismember(&pending, t.signal) == 1;
      },
      "a timer");
}

void expect_one(const Timer& t, int value) {
  siginfo_t info{};
  if (t.interval != 0 && t.interval < kHour) sleep_ms(10 * t.interval / kMs);
  expect(take(t.signal, info) != 0, std::string(t.what) + ": no signal is queued");
  expect(info.si_code == SI_TIMER, std::string(t.what) + ": the signal is no timer's");
  expect_equal(info.si_value.sival_int, value, std::string(t.what) + ": the signal's value");
  if (t.interval != 0 && t.interval < kHour)
    expect(info.si_overrun >= 5, std::string(t.what) + ": " + std::to_string(info.si_overrun) + " overruns");
  if (t.interval == 0 || t.interval >= kHour)
    expect(take(t.signal, info) == 0, std::string(t.what) + ": its signal comes twice");
}

void expect_left(const Timer& t, int64_t since) {
  itimerspec left{};
  must(timer_gettime(t.id, &left), "timer_gettime");
  const int64_t ns = int64_t{left.it_value.tv_sec} * 1'000'000'000 + left.it_value.tv_nsec;
  if (t.interval == 0) return expect_equal(ns, 0, std::string(t.what) + ": what is left");
  expect(ns > 0, std::string(t.what) + " is dead");
  if (t.interval < kHour) return;
  const int64_t want = since + t.interval - now_ns(t.clock);
  expect(std::llabs(ns - want) < 1000 * kMs,
         std::string(t.what) + ": " + std::to_string(ns / kMs) + " ms left, not " + std::to_string(want / kMs));
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        std::vector<Timer> all{
            {"a one-shot timer", CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0, nullptr},
            {"a timer of hours", CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + 2, kHour, nullptr},
            {"a fast timer", CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 20 * kMs, nullptr},
            {"a thread's one-shot timer", CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 4, 0, nullptr},
            {"a thread's timer of hours", CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 5, kHour, nullptr},
            {"a fast timer of real time", CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 6, 20 * kMs, nullptr},
            {"an ordinary signal's timer", CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, kHour, nullptr}};
        for (size_t i = 0; i < all.size(); ++i) {
          const sigset_t set = set_of(all[i].signal);
          must(sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
          make(all[i], static_cast<int>(100 + i));
        }
        // It began three of its hours ago; the signal of that is taken.
        Timer late{"a late timer", CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 7, kHour, nullptr};
        const sigset_t set = set_of(late.signal);
        must(sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
        make(late, 7);
        const itimerspec begun{to_timespec(kHour), to_timespec(now_ns(CLOCK_REALTIME) - 3 * kHour - kHour / 2)};
        must(timer_settime(late.id, TIMER_ABSTIME, &begun, nullptr), "timer_settime");
        siginfo_t info{};
        await([&] { return take(late.signal, info) != 0; }, "a late timer");
        expect_equal(info.si_overrun, 3, "overruns at first");

        std::vector<int64_t> since(all.size());
        const auto begin = [&] {
          for (size_t i = 0; i < all.size(); ++i) {
            since[i] = now_ns(all[i].clock);
            expire(all[i]);
          }
        };
        begin();
        w.serve([&] {
          for (size_t i = 0; i < all.size(); ++i) {
            expect_one(all[i], static_cast<int>(100 + i));
            expect_left(all[i], since[i]);
          }
          expect_equal(must(timer_getoverrun(late.id), "timer_getoverrun"), 3, "overruns of the last signal");
          expect(take(late.signal, info) == 0, "a late timer's signal comes twice");
          begin();
        });
      },
      argv[0]);
}
