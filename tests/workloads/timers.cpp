// Interval timers, POSIX timers and timerfd: what is armed stays armed with the time that was left, periodic ones
// neither lose nor gain rounds, one-shot ones fire once, in order and not early.
#include <sys/time.h>
#include <sys/timerfd.h>

#include <csignal>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr int64_t kMs = 1'000'000;
std::atomic<int64_t> g_alarms{0}, g_rounds{0};
std::atomic<int> g_order[3];
std::atomic<int64_t> g_fired_at[3];
std::atomic<int> g_next{0};
timer_t g_periodic;

void on_alarm(int) { ++g_alarms; }
void on_round(int, siginfo_t* info, void*) { g_rounds += 1 + info->si_overrun; }
void on_one_shot(int, siginfo_t* info, void*) {
  const int n = g_next++;
  if (n >= 3) return;
  g_order[n] = info->si_value.sival_int;
  g_fired_at[n] = now_ns();
}

itimerspec in(int64_t first_ns, int64_t interval_ns) {
  return {{interval_ns / 1'000'000'000, interval_ns % 1'000'000'000},
          {first_ns / 1'000'000'000, first_ns % 1'000'000'000}};
}
int64_t ns(const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; }

timer_t make_timer(clockid_t clock, int notify, int sig, int value, int64_t first, int64_t interval, int flags = 0) {
  sigevent e{};
  e.sigev_notify = notify;
  e.sigev_signo = sig;
  e.sigev_value.sival_int = value;
  if (notify == SIGEV_THREAD_ID) e._sigev_un._tid = static_cast<int>(syscall(SYS_gettid));
  timer_t t{};
  must(timer_create(clock, &e, &t), "timer_create");
  const itimerspec spec = in(first, interval);
  must(timer_settime(t, flags, &spec, nullptr), "timer_settime");
  return t;
}

struct Far {
  timer_t id;
  clockid_t clock;
  int64_t due;
};

void expect_far(const Far& f, const std::string& what) {
  itimerspec s{};
  must(timer_gettime(f.id, &s), "timer_gettime");
  const int64_t left = ns(s.it_value), want = f.due - now_ns(f.clock);
  expect(std::llabs(left - want) < 100 * kMs,
         what + ": " + std::to_string(left / kMs) + " ms left, should be " + std::to_string(want / kMs));
}

/// `count` rounds in `elapsed` at `interval`: allows for `lossy` standard signals under load.
void expect_rounds(int64_t count, int64_t elapsed, int64_t interval, bool lossy, const std::string& what) {
  const int64_t want = elapsed / interval;
  const std::string text = what + ": " + std::to_string(count) + " rounds instead of " + std::to_string(want);
  expect(count <= want + 5, text);
  expect(count >= (lossy ? want / 3 : want - want / 50) - 5, text);
}

void on(int sig, void (*simple)(int), void (*full)(int, siginfo_t*, void*)) {
  struct sigaction a = {};
  if (full)
    a.sa_sigaction = full;
  else
    a.sa_handler = simple;
  a.sa_flags = SA_RESTART | (full ? SA_SIGINFO : 0);
  must(sigaction(sig, &a, nullptr), "sigaction");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        on(SIGALRM, on_alarm, nullptr);
        on(SIGVTALRM, on_alarm, nullptr);
        on(SIGRTMIN + 1, nullptr, on_round);
        on(SIGRTMIN + 2, nullptr, on_one_shot);
        const int64_t hour = int64_t{3600} * 1000 * kMs;
        const int fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd_create");
        const int far_fd = must(timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC), "timerfd_create");
        const itimerspec in_an_hour = in(hour, 7 * kMs), periodic = in(30 * kMs, 30 * kMs);
        must(timerfd_settime(far_fd, 0, &in_an_hour, nullptr), "timerfd_settime");
        // A relative timer of CLOCK_REALTIME does not follow that clock when it is set, or when the program was not
        // there (timer_settime(2)): it counts like one of CLOCK_MONOTONIC.
        const int64_t armed = now_ns();
        const std::vector<Far> far = {
            {make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 1, hour, 0), CLOCK_MONOTONIC, now_ns() + hour},
            {make_timer(CLOCK_REALTIME, SIGEV_NONE, 0, 2, hour, kMs), CLOCK_MONOTONIC, now_ns() + hour},
            {make_timer(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 3, 3, hour, 0), CLOCK_BOOTTIME,
             now_ns(CLOCK_BOOTTIME) + hour},
            {make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 4, now_ns() + 2 * hour, 0, TIMER_ABSTIME),
             CLOCK_MONOTONIC, now_ns() + 2 * hour}};
        const int64_t start = now_ns();
        for (int i : {2, 0, 1})
          make_timer(i == 1 ? CLOCK_BOOTTIME : CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 2, i, (1500 + 700 * i) * kMs,
                     0);
        g_periodic = make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 9, 20 * kMs, 20 * kMs);
        const itimerval alarm{{0, 50'000}, {0, 50'000}}, cpu{{1000, 0}, {2000, 0}};
        must(setitimer(ITIMER_REAL, &alarm, nullptr), "setitimer");
        must(setitimer(ITIMER_VIRTUAL, &cpu, nullptr), "setitimer");
        must(setitimer(ITIMER_PROF, &cpu, nullptr), "setitimer");
        must(timerfd_settime(fd, 0, &periodic, nullptr), "timerfd_settime");
        int64_t ticks = 0;
        w.serve([&] {
          const int64_t elapsed = now_ns() - start;
          uint64_t n = 0;
          if (read(fd, &n, sizeof n) == sizeof n) ticks += static_cast<int64_t>(n);
          expect_rounds(ticks, elapsed, 30 * kMs, false, "timerfd");
          expect_rounds(g_rounds, elapsed, 20 * kMs, false, "POSIX timer");
          expect_rounds(g_alarms, elapsed, 50 * kMs, true, "ITIMER_REAL");
          int i = 0;
          for (const Far& f : far) expect_far(f, "far timer " + std::to_string(i++));
          itimerspec s{};
          must(timerfd_gettime(far_fd, &s), "timerfd_gettime");
          expect(std::llabs(ns(s.it_value) - (armed + hour - now_ns())) < 100 * kMs, "far timerfd");
          expect_equal(ns(s.it_interval), 7 * kMs, "far timerfd's interval");
          for (int which : {ITIMER_VIRTUAL, ITIMER_PROF}) {
            itimerval v{};
            must(getitimer(which, &v), "getitimer");
            expect(v.it_interval.tv_sec == 1000 && v.it_value.tv_sec > 1900 && v.it_value.tv_sec <= 2000, "CPU itimer");
          }
          const int64_t before = g_rounds;
          await([&] { return g_rounds > before; }, "the next round");
          const int fired = std::min(g_next.load(), 3);
          for (int k = 0; k < fired; ++k) {
            expect_equal(g_order[k].load(), k, "one-shot timers' order");
            expect(g_fired_at[k] - start >= (1500 + 700 * k) * kMs, "one-shot timer fired early");
          }
          if (elapsed > 3500 * kMs) expect_equal(g_next.load(), 3, "one-shot timers fired");
        });
      },
      argv[0]);
}
