// Calls with a relative time-out end when they should have, wherever they were interrupted: neither early nor late, and
// without an error that the kernel would not give.
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>

#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

timespec spec(int64_t ms) { return {ms / 1000, (ms % 1000) * 1'000'000}; }

struct Case {
  const char* name;
  int64_t ms;
  bool may_be_interrupted;            // signal(7): these give EINTR after any stop
  std::function<bool(int64_t)> call;  // true: ended by time-out
};

struct State {
  std::atomic<int64_t> rounds{0};
  std::atomic<int64_t> bad{0};  // milliseconds, or -errno - 1
  int64_t again = 0;            // that it has waited its whole time again, since nobody could tell how long it had
};

bool timed_out(long result) { return result == 0; }

bool futex_times_out(int64_t ms) {
  uint32_t word = 0;
  const timespec t = spec(ms);
  return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, nullptr, 0) == -1 && errno == ETIMEDOUT;
}

bool semaphore_times_out(int64_t ms) {
  sem_t s;
  sem_init(&s, 0, 0);
  const int64_t end = now_ns() + ms * 1'000'000;
  const timespec t{end / 1'000'000'000, end % 1'000'000'000};
  return sem_clockwait(&s, CLOCK_MONOTONIC, &t) == -1 && errno == ETIMEDOUT;
}

bool absolute_sleep(int64_t ms) {
  const int64_t end = now_ns() + ms * 1'000'000;
  const timespec t{end / 1'000'000'000, end % 1'000'000'000};
  errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
  return errno == 0;
}

bool relative_sleep(clockid_t clock, int64_t ms) {
  const timespec t = spec(ms);
  timespec left{};
  errno = clock_nanosleep(clock, 0, &t, &left);
  return errno == 0;
}

bool select_times_out(int fd, int64_t ms) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(fd, &set);
  timeval t{ms / 1000, (ms % 1000) * 1000};
  return timed_out(select(fd + 1, &set, nullptr, nullptr, &t));
}

void loop(const Case& c, State& state) {
  for (;;) {
    const int64_t start = now_ns();
    errno = 0;
    const bool ok = c.call(c.ms);
    const int error = errno;
    const int64_t took = (now_ns() - start) / 1'000'000;
    if (!ok && !(c.may_be_interrupted && error == EINTR)) state.bad = -error - 1;
    constexpr int64_t kLate = 700;
    const bool late = took > c.ms + kLate && (++state.again > 1 || took > 2 * c.ms + kLate);
    if (ok && (took < c.ms - 1 || late)) state.bad = took + 1;
    ++state.rounds;
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        int pair[2];
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
        const timeval receive{1, 300'000};
        must(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive), "SO_RCVTIMEO");
        const int epoll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        const auto poll_for = [&](int64_t ms) {
          pollfd p{pair[0], POLLIN, 0};
          return timed_out(poll(&p, 1, static_cast<int>(ms)));
        };
        const std::vector<Case> cases = {
            {"nanosleep", 1200, false,
             [](int64_t ms) {
               const timespec t = spec(ms);
               return nanosleep(&t, nullptr) == 0;
             }},
            {"a long nanosleep", 4000, false,
             [](int64_t ms) {
               const timespec t = spec(ms);
               return nanosleep(&t, nullptr) == 0;
             }},
            {"clock_nanosleep(MONOTONIC)", 1500, false, [](int64_t ms) { return relative_sleep(CLOCK_MONOTONIC, ms); }},
            {"clock_nanosleep(BOOTTIME)", 1400, false, [](int64_t ms) { return relative_sleep(CLOCK_BOOTTIME, ms); }},
            {"clock_nanosleep(REALTIME)", 1300, false, [](int64_t ms) { return relative_sleep(CLOCK_REALTIME, ms); }},
            {"clock_nanosleep(ABSTIME)", 1600, false, absolute_sleep},
            {"poll", 1700, false, poll_for},
            {"a long poll", 3700, false, poll_for},
            {"ppoll", 1250, false,
             [&](int64_t ms) {
               pollfd p{pair[0], POLLIN, 0};
               const timespec t = spec(ms);
               return timed_out(ppoll(&p, 1, &t, nullptr));
             }},
            {"select", 1350, false, [&](int64_t ms) { return select_times_out(pair[0], ms); }},
            {"futex", 1450, false, futex_times_out},
            {"a long futex", 3900, false, futex_times_out},
            {"sem_clockwait", 1550, false, semaphore_times_out},
            {"epoll_wait", 1650, true,
             [&](int64_t ms) {
               epoll_event e{};
               return timed_out(epoll_wait(epoll, &e, 1, static_cast<int>(ms)));
             }},
            {"recv with SO_RCVTIMEO", 1300, true,
             [&](int64_t) {
               char c = 0;
               return recv(pair[1], &c, 1, 0) == -1 && errno == EAGAIN;
             }},
        };
        std::vector<State> states(cases.size());
        for (size_t i = 0; i < cases.size(); ++i) std::thread(loop, std::cref(cases[i]), std::ref(states[i])).detach();
        sleep_ms(100);
        w.serve([&] {
          std::vector<int64_t> rounds;
          rounds.reserve(states.size());
          for (const State& s : states) rounds.push_back(s.rounds);
          for (size_t i = 0; i < cases.size(); ++i) {
            const std::string name = cases[i].name;
            await([&] { return states[i].rounds > rounds[i]; }, name + " to end", 12'000);
            const int64_t bad = states[i].bad.exchange(0);
            if (bad > 0)
              throw std::runtime_error(name + " of " + std::to_string(cases[i].ms) + " ms took " +
                                       std::to_string(bad - 1));
            if (bad < 0) throw std::runtime_error(name + ": " + std::strerror(static_cast<int>(-bad - 1)));
          }
        });
      },
      argv[0]);
}
