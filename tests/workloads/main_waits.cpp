// Processes whose only thread waits with a relative time-out: it ends when it should have, and without an error,
// although pre-copy has visited just that thread.
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>

#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr int64_t wait_ms = 3000, late_ms = 900;
/// Of a thread that the scheduler has moved while it went to sleep nobody can tell since when it sleeps: that one waits
/// its whole time again.
constexpr int64_t most_again = 1;

struct Wait {
  const char* name;
  std::function<bool()> call;  // true: ended by time-out
};

struct State {
  std::atomic<int64_t> rounds, error, shortest, longest, late;
};

timespec span() { return {wait_ms / 1000, (wait_ms % 1000) * 1'000'000}; }

bool futex_times_out() {
  uint32_t word = 0;
  const timespec t = span();
  return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, nullptr, 0) == -1 && errno == ETIMEDOUT;
}

[[noreturn]] void wait_again_and_again(const Wait& wait, State& state) {
  const pid_t parent = getppid();
  while (getppid() == parent) {
    const int64_t start = now_ns();
    errno = 0;
    if (!wait.call()) state.error = errno == 0 ? -1 : errno;
    const int64_t took = (now_ns() - start) / 1'000'000;
    if (took < state.shortest) state.shortest = took;
    if (took > state.longest) state.longest = took;
    if (took > wait_ms + late_ms) ++state.late;
    ++state.rounds;
  }
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int epoll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        const std::vector<Wait> waits = {{"nanosleep without remainder",
                                          [] {
                                            const timespec t = span();
                                            return nanosleep(&t, nullptr) == 0;
                                          }},
                                         {"nanosleep",
                                          [] {
                                            timespec t = span();
                                            return nanosleep(&t, &t) == 0;
                                          }},
                                         {"poll", [] { return poll(nullptr, 0, wait_ms) == 0; }},
                                         {"futex", futex_times_out},
                                         {"epoll_wait", [&] {
                                            epoll_event event{};
                                            return epoll_wait(epoll, &event, 1, wait_ms) == 0;
                                          }}};
        auto* states = shared_memory<State>(waits.size());
        for (size_t i = 0; i < waits.size(); ++i) {
          states[i].shortest = wait_ms;
          if (must(fork(), "fork") == 0) wait_again_and_again(waits[i], states[i]);
          sleep_ms(100);  // so that they do not all end at once
        }
        w.serve([&] {
          for (size_t i = 0; i < waits.size(); ++i) {
            const std::string name = waits[i].name;
            const int64_t error = states[i].error;
            expect(error == 0, name + " failed: " + std::strerror(static_cast<int>(error)));
            expect(states[i].shortest >= wait_ms - 1,
                   name + " ended after " + std::to_string(states[i].shortest) + " ms");
            expect(states[i].late <= most_again && states[i].longest <= 2 * wait_ms + late_ms,
                   name + " took " + std::to_string(states[i].longest) + " ms");
          }
        });
      },
      argv[0]);
}
