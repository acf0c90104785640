// An interval timer whose signal is pending: the kernel arms ITIMER_REAL again only when its SIGALRM is taken from the
// queue (it_real_fn in kernel/time/itimer.c), so that getitimer(2) tells an interval and no remaining time meanwhile.
#include <sys/time.h>

#include <csignal>

#include "workload.h"

using namespace workload;

namespace {

bool pending() {
  sigset_t set;
  sigpending(&set);
  return sigismember(&set, SIGALRM) == 1;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        sigset_t alarm;
        sigemptyset(&alarm);
        sigaddset(&alarm, SIGALRM);
        must(sigprocmask(SIG_BLOCK, &alarm, nullptr), "sigprocmask");
        const itimerval ticks{{0, 30'000}, {0, 30'000}};
        must(setitimer(ITIMER_REAL, &ticks, nullptr), "setitimer");
        await(pending, "the first tick");
        w.serve([&] {
          for (int i = 0; i < 4; ++i) {
            const timespec second{1, 0};
            expect(sigtimedwait(&alarm, nullptr, &second) == SIGALRM, "tick " + std::to_string(i) + " did not come");
          }
          itimerval now{};
          must(getitimer(ITIMER_REAL, &now), "getitimer");
          expect_equal(now.it_interval.tv_usec, 30'000, "the interval");
          await(pending, "the last tick");
        });
      },
      argv[0]);
}
