// eventfd, epoll (flags, data, nested, duplicated targets), signalfd, timerfd in an epoll.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <csignal>
#include <set>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

void add(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event e{};
  e.events = events;
  e.data.u64 = data;
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e), "EPOLL_CTL_ADD");
}

std::set<uint64_t> ready(int epoll) {
  epoll_event e[16];
  std::set<uint64_t> result;
  const int n = must(epoll_wait(epoll, e, 16, 0), "epoll_wait");
  for (int i = 0; i < n; ++i) result.insert(e[i].data.u64);
  return result;
}

void bump(int event, uint64_t by) { expect(write(event, &by, sizeof by) == sizeof by, "write to eventfd"); }

uint64_t drain(int event) {
  uint64_t value = 0;
  expect(read(event, &value, sizeof value) == sizeof value, "read of eventfd");
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int counter = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
        bump(counter, 0x123456789ULL);
        const int semaphore = must(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK), "eventfd");
        const int quiet = must(eventfd(0, EFD_NONBLOCK), "eventfd");
        const int spare = must(eventfd(1, EFD_NONBLOCK), "eventfd");
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigaddset(&set, SIGRTMIN + 4);
        sigprocmask(SIG_BLOCK, &set, nullptr);
        const int signals = must(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
        const auto queue = [] {
          sigval v{};
          v.sival_int = 321;
          must(sigqueue(getpid(), SIGRTMIN + 4, v), "sigqueue");
        };
        queue();
        const int timer = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timerfd_create");
        const itimerspec often{{0, 20'000'000}, {0, 20'000'000}};
        must(timerfd_settime(timer, 0, &often, nullptr), "timerfd_settime");
        const int inner = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        const int outer = must(epoll_create1(0), "epoll_create1");
        add(inner, counter, EPOLLIN, 0xC0FFEE0000000001ULL);
        add(inner, semaphore, EPOLLIN | EPOLLET, 2);
        add(inner, quiet, EPOLLIN, 3);
        add(inner, signals, EPOLLIN, 4);
        add(inner, timer, EPOLLIN, 5);
        add(outer, inner, EPOLLIN, 6);
        const int target = must(dup(spare), "dup");
        add(outer, target, EPOLLIN | EPOLLONESHOT, 7);
        expect(ready(outer).count(7) == 1, "one-shot event did not come");  // and is disarmed from here on
        w.serve([&] {
          sleep_ms(25);
          const std::set<uint64_t> now = ready(inner);
          expect(now.count(0xC0FFEE0000000001ULL) == 1, "epoll does not report the counter");
          expect(now.count(3) == 0, "epoll reports a quiet eventfd");
          expect(now.count(4) == 1, "epoll does not report the signalfd");
          expect(now.count(5) == 1, "epoll does not report the timerfd");
          const std::set<uint64_t> above = ready(outer);
          expect(above.count(6) == 1, "the outer epoll does not report the inner one");
          expect(above.count(7) == 0, "a disarmed one-shot event came again");
          expect_equal(drain(counter), 0x123456789ULL, "eventfd");
          bump(counter, 0x123456789ULL);
          expect_equal(drain(semaphore), 1U, "eventfd semaphore");
          bump(semaphore, 1);
          bump(quiet, 1);
          expect(ready(inner).count(3) == 1, "epoll misses a new event");
          drain(quiet);
          signalfd_siginfo info{};
          expect(read(signals, &info, sizeof info) == sizeof info, "signalfd has no signal");
          expect_equal(info.ssi_signo, static_cast<uint32_t>(SIGRTMIN + 4), "signalfd's signal");
          expect_equal(info.ssi_int, 321, "signalfd's value");
          queue();
          expect(drain(timer) >= 1, "timerfd");
        });
      },
      argv[0]);
}
