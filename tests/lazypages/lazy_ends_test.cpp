// How lazy memory ends: given back while the program changes it, poisoned, short of descriptors, under guards.
#include <csetjmp>
#include <future>
#include <random>

#include "core/base/error.h"
#include "tests/core/seeds.h"
#include "tests/eventually.h"
#include "tests/lazypages/lazy_walk.h"

namespace migrate {
namespace {

using namespace lazy_testing;

sigjmp_buf after_signal;
void on_signal(int signal) { siglongjmp(after_signal, signal); }

/// The signal that reading from the page raises; 0: none.
int signal_of(const char* page) {
  for (const int signal : {SIGSEGV, SIGBUS}) ::signal(signal, on_signal);
  if (const int signal = sigsetjmp(after_signal, 1); signal != 0) return signal;
  static_cast<void>(*const_cast<const volatile char*>(page));
  return 0;
}

// Without draining events before the descriptor is closed, one program in ten hung. MIGRATE_TEST_ROUNDS=N: so often.
TEST(LazyEnds, NobodyHangsThatDiscardsWhileTheFillEnds) {
  const uint64_t rounds = number_from("MIGRATE_TEST_ROUNDS", 100);
  for (uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE(round);
    LazyProgram program(kChanged, [&](char* base, Talk& talk) { return change_until_enough(base, talk, round); });
    Daemon daemon(program, {.seed = round});
    program.go();
    ASSERT_TRUE(daemon.becomes_whole()) << program.talk().trouble.data();
    daemon.stop();
    daemon.memories().finish();
    EXPECT_EQ(daemon.memories().spaces(), 0u);
    program.talk().enough = true;
    ASSERT_EQ(program.ended(), 0) << program.talk().trouble.data() << " after " << program.talk().progress << " steps";
  }
}

TEST(LazyEnds, MemoryThatIsNotWholeIsNotGivenBack) {
  LazyProgram program(20, [](char* base, Talk& talk) { return Walk(base, 20, 1, talk).run(0, 0); });
  Daemon daemon(program, {.fill = false});
  EXPECT_THROW(daemon.memories().finish(), Error);
  EXPECT_EQ(daemon.memories().missing_pages(), 16u);
  program.go();
  EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
}

/// A program that runs, up to the first page that it waits for. Nothing comes by itself.
struct Waited {
  explicit Waited(LazyProgram& program) : memories(memories_of(program), [this](MemoryId, uint64_t) { ++asked; }) {
    program.go();
    const Deadline deadline = Deadline::in(kPatience);
    while (asked == 0 && !deadline.passed()) memories.serve(std::chrono::milliseconds(10));
  }
  static std::vector<LazyMemory> memories_of(LazyProgram& program) {
    std::vector<LazyMemory> all;
    all.push_back(program.register_memory());
    return all;
  }
  std::atomic<int> asked = 0;
  LazyMemories memories;
};

TEST(LazyEnds, LostPagesRaiseSigbusAndNeverReadAsZeros) {
  LazyProgram program(20, [](char* base, Talk& talk) {
    // One waits for a page when it is given up.
    const pid_t waits = ::fork();
    if (waits == 0) {
      ++talk.progress;
      ::_exit(signal_of(base + 7 * kPageSize) == SIGBUS ? 0 : 1);
    }
    int status = 0;
    ::waitpid(waits, &status, 0);
    for (uint64_t page = 0; page < 20; ++page) {
      const int expected = page >= 2 && exists(page) ? SIGBUS : 0;
      if (const int got = signal_of(base + page * kPageSize); got != expected) return 1;
    }
    return status == 0 ? 0 : 2;
  });
  Waited waited(program);
  LazyMemories& memories = waited.memories;
  ASSERT_EQ(waited.asked, 1);
  EXPECT_EQ(memories.outstanding(),
            (std::map<MemoryId, std::vector<uint64_t>>{{kMemory, {program.base() + 7 * kPageSize}}}));
  std::vector<std::byte> two(2 * kPageSize);
  memories.write(kMemory, program.base(), two);
  memories.poison();
  EXPECT_EQ(memories.spaces(), 0u);
  EXPECT_EQ(program.ended(), 0);
}

TEST(LazyEnds, WhatOneTaskHasLostIsGivenUpAndItIsServedOn) {
  LazyProgram program(20, [](char* base, Talk&) {
    const auto wrong = [base] {
      // Page 7 is here, page 8 was lost.
      return signal_of(base + 7 * kPageSize) != 0 || signal_of(base + 8 * kPageSize) != SIGBUS;
    };
    // Others touch what is not missing all the time.
    std::atomic<bool> over = false;
    std::atomic<int> touched = 0;
    std::thread busy([&] {
      for (; !over; ++touched) {
        ::madvise(base + 9 * kPageSize, kPageSize, MADV_DONTNEED);
        static_cast<void>(*const_cast<const volatile char*>(base + 9 * kPageSize));
      }
    });
    const bool lost = signal_of(base + 8 * kPageSize) == SIGBUS;
    const int before = touched;
    const bool goes_on = eventually([&] { return touched > before + 10; });
    over = true;
    busy.join();
    if (!lost || !goes_on || wrong()) return 1;
    const pid_t child = ::fork();
    if (child == 0) ::_exit(wrong() ? 1 : 0);
    int status = 0;
    ::waitpid(child, &status, 0);
    return status == 0 ? 0 : 2;
  });
  Waited waited(program);
  LazyMemories& memories = waited.memories;
  const auto serve = [&] { memories.serve(std::chrono::milliseconds(10)); };
  const Deadline deadline = Deadline::in(kPatience);
  ASSERT_EQ(waited.asked, 1);
  memories.write(kMemory, program.base() + 7 * kPageSize, std::vector<std::byte>(kPageSize));
  EXPECT_TRUE(memories.try_lose({MemoryId::Kind::task, kMemory.id + 1})) << "of which nothing is missing";
  EXPECT_FALSE(memories.whole());
  while (!memories.try_lose(kMemory) && !deadline.passed()) serve();
  EXPECT_TRUE(memories.whole());
  std::future<int> ended = std::async(std::launch::async, [&] { return program.ended(); });
  while (ended.wait_for(std::chrono::milliseconds(0)) != std::future_status::ready && !deadline.passed()) serve();
  EXPECT_EQ(ended.get(), 0);
  memories.finish();
}

TEST(LazyEnds, ForksWaitWhileThereIsNoDescriptorForThem) {
  constexpr int kChildren = 40;
  LazyProgram program(20, [](char* base, Talk& talk) {
    for (int i = 0; i < kChildren; ++i) {
      if (::fork() == 0) {
        ++talk.progress;
        while (talk.progress < 1000) ::usleep(100);
        ::_exit(Walk(base, 20, 1, talk).run(0, 2));
      }
    }
    int bad = 0, status = 0;
    while (::wait(&status) > 0) bad += status == 0 ? 0 : 1;
    return bad;
  });
  Daemon daemon(program, {.fill = false});
  std::vector<Fd> all;  // the rest of the table
  for (Fd fd(::dup(0)); fd; fd = Fd(::dup(0))) all.push_back(std::move(fd));
  program.go();
  const Deadline deadline = Deadline::in(kPatience);
  // Those kept for it are used up, then it waits.
  while (program.talk().progress < 10 && !deadline.passed()) ::usleep(100);
  EXPECT_GE(program.talk().progress, 10u);
  EXPECT_LT(program.talk().progress, static_cast<uint64_t>(kChildren));
  all.clear();
  while ((program.talk().progress < kChildren || daemon.memories().spaces() <= kChildren) && !deadline.passed())
    ::usleep(100);
  EXPECT_EQ(daemon.memories().spaces(), kChildren + 1u);
  program.talk().progress = 1000;
  EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
  EXPECT_TRUE(daemon.becomes_whole());
}

TEST(LazyEnds, GuardsAreNotFilledOver) {
  constexpr int kGuardInstall = 102, kGuardRemove = 103;
  void* page = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool known = ::madvise(page, kPageSize, kGuardInstall) == 0;
  ::munmap(page, kPageSize);
  if (!known) GTEST_SKIP() << "guard regions came with Linux 6.13";
  for (const bool forks : {false, true}) {
    LazyProgram program(40, [forks](char* base, Talk& talk) {
      if (::madvise(base + 10 * kPageSize, 3 * kPageSize, kGuardInstall) != 0) return 2;
      const pid_t child = forks ? ::fork() : -1;
      if (child != 0) talk.progress = 1;
      while (talk.progress != 2) ::usleep(50);
      for (uint64_t i = 0; i < 40; ++i) {
        const bool guarded = i >= 10 && i < 13;
        if (signal_of(base + i * kPageSize) != (guarded ? SIGSEGV : 0)) return 3;
      }
      if (::madvise(base + 10 * kPageSize, 3 * kPageSize, kGuardRemove) != 0) return 4;
      if (base[11 * kPageSize] != 0 || base[12 * kPageSize] != 0) return 5;  // as after MADV_DONTNEED
      int status = 0;
      if (child > 0) ::waitpid(child, &status, 0);
      return status == 0 ? 0 : 6;
    });
    Daemon daemon(program, {.fill = false});
    program.go();
    const Deadline deadline = Deadline::in(kPatience);
    while (program.talk().progress != 1 && !deadline.passed()) ::usleep(50);
    ASSERT_EQ(program.talk().progress, 1u);
    for (const auto& [memory, runs] : daemon.memories().missing())
      for (const PageRun& run : runs) daemon.memories().write(memory, run.address, daemon.data(run.address, run.pages));
    EXPECT_TRUE(daemon.memories().whole());
    program.talk().progress = 2;
    EXPECT_EQ(program.ended(), 0);
  }
}

}  // namespace
}  // namespace migrate
