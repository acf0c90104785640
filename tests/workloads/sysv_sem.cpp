// System V semaphores: values, numbers, owners, who did something last, a process that waits in semop(2), and what is
// undone when processes end (SEM_UNDO), also with several threads.
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>

#include <thread>

#include "sysv.h"

using namespace workload;

namespace {

constexpr unsigned short kWorkers = 0, kWaiter = 1, kEmpty = 2, kKept = 3, kCounter = 4, kAll = 5;

void step(int set, unsigned short semaphore, short by, short flags = 0) {
  sembuf op{semaphore, by, flags};
  must(semop(set, &op, 1), "semop");
}

int value(int set, unsigned short semaphore) { return must(semctl(set, semaphore, GETVAL), "GETVAL"); }

void take(int set) {
  step(set, kWorkers, -2, SEM_UNDO);
  step(set, kKept, 3, SEM_UNDO);
}

/// What a process that ends leaves undone, undone now: it has no list any more.
void undo() { must(unshare(CLONE_SYSVSEM), "unshare"); }

/// Takes what it gives back when it ends. Whenever it is asked, it gives back, and takes again when asked once more.
void start_worker(int set, std::atomic<uint32_t>* asked, std::atomic<uint32_t>* done, bool threads) {
  if (must(fork(), "fork") != 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  take(set);
  std::atomic<uint32_t> turn = 0;
  std::thread other;  // has the same list, until it has left it
  if (threads) {
    other = std::thread([&] {
      for (uint32_t seen = 0;; ++seen) {
        while (turn.load() == 2 * seen) sleep_ms(1);
        undo();
        turn.store(2 * seen + 2);
      }
    });
  }
  for (uint32_t n = 0;; ++n) {
    while (asked->load() == done->load()) sleep_ms(1);
    turn.store(2 * n + 1);
    while (threads && turn.load() == 2 * n + 1) sleep_ms(1);
    undo();
    done->fetch_add(1);
    while (asked->load() == done->load()) sleep_ms(1);
    take(set);
    done->fetch_add(1);
  }
}

void ask(std::atomic<uint32_t>* asked, std::atomic<uint32_t>* done) {
  const uint32_t n = asked->fetch_add(1) + 1;
  await([&] { return done->load() == n; }, "a worker");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int set = noted(w, 's', must(semget(key_of(1), kAll, IPC_CREAT | IPC_EXCL | 0660), "semget"));
        const int free_set = noted(w, 's', must(semget(IPC_PRIVATE, 2, 0600), "semget"));
        must(semctl(free_set, 1, SETVAL, 77), "SETVAL");
        must(semctl(set, kWorkers, SETVAL, 10), "SETVAL");
        must(semctl(set, kKept, SETVAL, 100), "SETVAL");
        auto* asked = shared_memory<std::atomic<uint32_t>>(2);
        auto* done = shared_memory<std::atomic<uint32_t>>(2);
        auto* woken = shared_memory<std::atomic<uint32_t>>();
        start_worker(set, &asked[0], &done[0], false);
        start_worker(set, &asked[1], &done[1], true);
        if (must(fork(), "fork") == 0) {
          prctl(PR_SET_PDEATHSIG, SIGKILL);
          for (;;) {
            step(set, kWaiter, -1);
            woken->fetch_add(1);
          }
        }
        step(set, kCounter, 5, SEM_UNDO);
        await([&] { return value(set, kWorkers) == 6 && value(set, kKept) == 106; }, "the workers");
        w.serve([&] {
          expect_equal(value(free_set, 1), 77, "the other set's value");
          expect_equal(value(set, kEmpty), 0, "the empty one");
          expect_equal(value(set, kCounter), 5, "the counter");
          expect_equal(must(semctl(set, kCounter, GETPID), "GETPID"), getpid(), "who counted");
          expect_equal(semget(key_of(1), 0, 0), set, "what the key leads to");
          semid_ds ds{};
          must(semctl(set, 0, IPC_STAT, &ds), "IPC_STAT");
          expect_equal(ds.sem_perm.mode & 0777, 0660, "the mode");
          expect_equal(ds.sem_nsems, static_cast<unsigned long>(kAll), "the number of semaphores");
          const uint32_t before = woken->load();
          step(set, kWaiter, 1);
          await([&] { return woken->load() == before + 1; }, "the waiter to wake up");
          expect_equal(must(semctl(set, kWaiter, GETNCNT), "GETNCNT") <= 1, true, "who waits");
          for (int i = 0; i < 2; ++i) {
            expect_equal(value(set, kWorkers), 6, "the workers' semaphore");
            expect_equal(value(set, kKept), 106, "what workers gave");
            ask(&asked[i], &done[i]);
            expect_equal(value(set, kWorkers), 8, "the semaphore when worker " + std::to_string(i) + " has undone");
            expect_equal(value(set, kKept), 103, "what is left of the other worker's");
            ask(&asked[i], &done[i]);
          }
        });
      },
      "sysv_sem");
}
