// A pool of buffers in NUMBER MiB (default 16) of shared anonymous memory, as databases have it: NUMBER (default 5)
// processes, which end and are forked anew all the time, read and write pages of their slot, give some back and count
// under a mutex of the pool's. A book says what each page must hold; who has just been forked looks at any of them.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096;
constexpr int kMostSlots = 32;

struct Page {
  uint64_t words[kPage / 8];
};

/// Not in the pool.
struct Control {
  std::atomic<bool> pause{false}, failed{false};
  std::atomic<bool> busy[kMostSlots]{};  ///< from before the fork until its end is seen
  std::atomic<uint64_t> steps{0}, forked{0};
  char trouble[200]{};

  void fail(const std::string& what) {
    if (!failed.exchange(true)) std::snprintf(trouble, sizeof trouble, "%s", what.c_str());
  }
};

/// The pool's last page.
struct Shared {
  pthread_mutex_t mutex;
  uint64_t counted, also_counted;
};

uint64_t word(uint64_t serial, size_t page, size_t i) {
  return serial == 0 ? 0 : (serial * 0x9E3779B97F4A7C15ULL ^ (page << 20)) + i * 0xD1B54A32D192ED03ULL;
}

class Pool {
 public:
  Pool(size_t mebibytes, int processes) : pages(mebibytes * 256 - 1), slots(processes) {
    control = new (shared_memory<Control>()) Control;
    book = shared_memory<uint64_t>(pages);
    pool = shared_memory<Page>(pages + 1);
    shared = reinterpret_cast<Shared*>(&pool[pages]);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &attributes);
    for (size_t i = 0; i < pages; ++i) write(i, i % 7 == 3 ? 0 : i + 1);
  }

  void write(size_t i, uint64_t serial) {
    book[i] = serial;
    if (serial == 0) {
      madvise(&pool[i], kPage, MADV_REMOVE);
      return;
    }
    for (size_t k = 0; k < kPage / 8; ++k) pool[i].words[k] = word(serial, i, k);
  }
  void check(size_t i) const {
    for (size_t k = 0; k < kPage / 8; ++k)
      if (const uint64_t found = pool[i].words[k]; found != word(book[i], i, k))
        throw std::runtime_error("page " + std::to_string(i) + " of time " + std::to_string(book[i]) + " has " +
                                 std::to_string(found) + " at " + std::to_string(k));
  }
  void check_all(uint64_t x) const {
    for (size_t i = 0; i < pages; ++i) check((i * 7919 + x) % pages);  // 7919 is a prime
    expect(shared->counted == shared->also_counted, "somebody counted beside the mutex");
  }

  /// In a process of its own.
  [[noreturn]] void work(int slot, uint64_t seed) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      uint64_t x = seed * 0x9E3779B97F4A7C15ULL + 1;
      for (int n = 0; n < 60 && !control->pause; ++n) {
        step(slot, x);
        sleep_ms(3);
      }
    } catch (const std::exception& e) {
      control->fail(e.what());
    }
    _exit(0);
  }

  size_t pages;
  int slots;
  Control* control;

 private:
  void step(int slot, uint64_t& x) {
    for (int n = 0; n < 4; ++n) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      const size_t i =
          x % (pages / static_cast<size_t>(slots)) * static_cast<size_t>(slots) + static_cast<size_t>(slot);
      check(i);
      if (x >> 60 == 0) madvise(&pool[i], kPage, MADV_DONTNEED);
      if (x >> 60 == 1) write(i, 0);
      if (x >> 60 > 7) write(i, x | 1);
    }
    pthread_mutex_lock(&shared->mutex);
    ++shared->counted;
    ++shared->also_counted;
    pthread_mutex_unlock(&shared->mutex);
    ++control->steps;
  }

  uint64_t* book;
  Page* pool;
  Shared* shared;
};

/// Forks whoever is missing.
[[noreturn]] void keep_up(Pool& pool) {
  std::vector<pid_t> workers(static_cast<size_t>(pool.slots), 0);
  for (;;) {
    for (int slot = 0; slot < pool.slots; ++slot) {
      pid_t& worker = workers[static_cast<size_t>(slot)];
      std::atomic<bool>& busy = pool.control->busy[slot];
      int status = 0;
      if (worker != 0 && waitpid(worker, &status, WNOHANG) == worker) {
        if (status != 0) pool.control->fail("a worker ended with " + std::to_string(status));
        worker = 0;
        busy = false;
      }
      if (worker != 0) continue;
      busy = true;
      if (pool.control->pause) {
        busy = false;
        continue;
      }
      const uint64_t seed = ++pool.control->forked;
      worker = must(fork(), "fork");
      if (worker == 0) pool.work(slot, seed);
    }
    sleep_ms(2);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Pool pool(static_cast<size_t>(w.number(0, 16)), static_cast<int>(std::min(w.number(1, 5), long{kMostSlots})));
        std::thread([&] { keep_up(pool); }).detach();
        Control& control = *pool.control;
        await([&] { return control.steps > 100; }, "the workers");
        w.serve([&] {
          const uint64_t before = control.steps;
          await([&] { return control.steps > before + 20 || control.failed; }, "the workers to go on");
          control.pause = true;
          const auto rest = [&] { return std::ranges::none_of(control.busy, [](const auto& b) { return b.load(); }); };
          await(rest, "the workers to end");
          try {
            expect(!control.failed, control.trouble);
            pool.check_all(before);
          } catch (...) {
            control.pause = false;
            throw;
          }
          control.pause = false;
        });
      },
      argv[0]);
}
