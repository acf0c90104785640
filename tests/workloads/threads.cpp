// Many threads (256 by default), blocked in futex, poll and nanosleep or spinning; each knows what must stay true of
// it.
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <memory>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

std::atomic<uint32_t> g_epoch{0};  // a futex word; threads check themselves whenever it moves
thread_local long tls_index = -1;

struct State {
  std::atomic<uint32_t> answered{0};
  std::atomic<const char*> failure{nullptr};
};

void await_next(long index, int event, uint32_t seen) {
  volatile uint64_t sink = 0;
  while (g_epoch.load() == seen) {
    switch (index % 4) {
      case 0:
        syscall(SYS_futex, &g_epoch, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
        break;
      case 1: {
        pollfd p{event, POLLIN, 0};
        poll(&p, 1, index % 8 == 1 ? -1 : 250);
        break;
      }
      case 2:
        sleep_ms(10 + index % 50);
        break;
      default:
        // Without a system call: two threads for about 30 ms, the others in short bursts, since there may be just two
        // cores. The two rest in between: where nobody of such a session ever does, Linux 6.18 (with autogroups) has
        // been seen to run them, and nothing else that was runnable, for half a minute.
        for (int i = 0; i < (index > 8 ? 20'000 : 20'000'000) && g_epoch.load() == seen; ++i) sink = sink + 1;
        sleep_ms(index > 8 ? 40 : 20);
    }
  }
}

void body(long index, int event, State& state) {
  uint8_t canary[512];
  fill_pattern(canary, sizeof canary, static_cast<uint64_t>(index));
  tls_index = index;
  const long tid = syscall(SYS_gettid);
  const pthread_t self = pthread_self();
  uint32_t seen = 0;
  state.answered = 1;
  for (;;) {
    await_next(index, event, seen);
    seen = g_epoch.load();
    try {
      expect_pattern(canary, sizeof canary, static_cast<uint64_t>(index), "stack");
      if (tls_index != index) state.failure = "thread-local storage changed";
      if (syscall(SYS_gettid) != tid) state.failure = "thread id changed";
      if (!pthread_equal(self, pthread_self())) state.failure = "pthread_self changed";
    } catch (const std::exception&) {
      state.failure = "stack contents changed";
    }
    state.answered = seen + 1;
    // The event stays set until everybody has answered.
    if (index % 4 == 1) sleep_ms(20);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const long count = w.number(0, 256);
        const int event = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
        auto states = std::make_unique<State[]>(static_cast<size_t>(count));
        std::vector<std::thread> threads;
        for (long i = 0; i < count; ++i) threads.emplace_back(body, i, event, std::ref(states[i]));
        auto all_answered = [&](uint32_t epoch) {
          for (long i = 0; i < count; ++i)
            if (states[i].answered != epoch + 1) return false;
          return true;
        };
        await([&] { return all_answered(0); }, "threads to start");
        w.serve([&] {
          const uint32_t epoch = ++g_epoch;
          const uint64_t one = 1;
          expect(write(event, &one, sizeof one) == sizeof one, "write to eventfd failed");
          syscall(SYS_futex, &g_epoch, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
          await([&] { return all_answered(epoch); }, "all threads to answer");
          uint64_t value = 0;
          expect(read(event, &value, sizeof value) == sizeof value && value == 1, "eventfd lost its value");
          for (long i = 0; i < count; ++i)
            if (const char* f = states[i].failure) throw std::runtime_error("thread " + std::to_string(i) + ": " + f);
        });
      },
      argv[0]);
}
