// Processes that run on memory that is missing.
#include "lazypages/lazy_memories.h"

#include <random>

#include "core/base/error.h"
#include "lazypages/userfault.h"
#include "tests/eventually.h"
#include "tests/lazypages/lazy_walk.h"

namespace migrate {
namespace {

using namespace lazy_testing;

bool is_as_at_source(const char* base, uint64_t page) {
  const auto* words = reinterpret_cast<const volatile uint64_t*>(base + page * kPageSize);
  for (uint64_t w = 0; w < 512; ++w)
    if (words[w] != (exists(page) ? word_of(page, w) : 0)) return false;
  return true;
}

/// Runs a program to its end, and the daemon till nothing is left of it.
void expect_good_end(LazyProgram& program, Daemon::Options options) {
  Daemon daemon(program, options);
  program.go();
  const int status = program.ended();
  EXPECT_EQ(status, 0) << program.talk().trouble.data() << " after " << program.talk().progress << " steps; "
                       << daemon.memories().missing_pages() << " pages missing in " << daemon.memories().spaces();
  EXPECT_TRUE(daemon.becomes_whole());
  daemon.stop();
}

TEST(LazyMemories, EveryByteIsThereWhateverTheProgramDoes) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    LazyProgram program(400, [&](char* base, Talk& talk) { return Walk(base, 400, seed, talk).run(400, 0); });
    expect_good_end(program, {.fill = seed % 4 != 0, .seed = seed, .pause = std::chrono::microseconds(seed * 40)});
    if (HasFailure()) return;
  }
}

// Events of several threads come in the order in which they get to the queue, and one thread's addresses are the next
// one's.
TEST(LazyMemories, ThreadsThatEachDoEverythingToTheirOwn) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    LazyProgram program(600, [&](char* base, Talk& talk) {
      std::atomic<int> bad = 0;
      std::vector<std::thread> threads;
      for (uint64_t t = 0; t < 3; ++t)
        threads.emplace_back(
            [&, t] { bad += Walk(base + t * 200 * kPageSize, 200, seed * 10 + t, talk, t * 200).run(250, 1); });
      for (std::thread& t : threads) t.join();
      return bad == 0 ? 0 : 1;
    });
    expect_good_end(program, {.seed = seed, .pause = std::chrono::microseconds(seed * 40)});
    if (HasFailure()) return;
  }
}

TEST(LazyMemories, TheKernelSaysWhatIsRegistered) {
  LazyProgram program(8, [](char* base, Talk& talk) {
    talk.progress = 1;
    while (talk.progress != 2) ::usleep(50);
    if (::munmap(base + 4 * kPageSize, 2 * kPageSize) != 0) return 1;
    while (talk.progress != 4) ::usleep(50);
    return 0;
  });
  const LazyMemory memory = program.register_memory();
  const int fd = memory.userfaultfd.get();
  const auto ask = [&](uint64_t first, uint64_t count) {
    return ask_registered(fd, range_of(program.base() + first * kPageSize, count * kPageSize));
  };
  program.go();
  ASSERT_TRUE(eventually([&] { return program.talk().progress == 1; }));
  EXPECT_EQ(ask(0, 8), Filled::exists);
  EXPECT_EQ(ask(7, 1), Filled::exists);
  EXPECT_EQ(ask(7, 100000), Filled::unregistered);
  EXPECT_EQ(ask(0, 9), Filled::unregistered);
  program.talk().progress = 2;
  EXPECT_TRUE(eventually([&] { return ask(0, 1) == Filled::changing; }));
  // The kernel says "changing" before the event is in the queue: userfaultfd_unmap_prep() in fs/userfaultfd.c.
  uffd_msg message{};
  EXPECT_TRUE(eventually([&] { return ::read(fd, &message, sizeof message) == static_cast<ssize_t>(sizeof message); }));
  EXPECT_EQ(message.event, UFFD_EVENT_UNMAP);
  EXPECT_TRUE(eventually([&] { return ask(0, 1) != Filled::changing; }));
  EXPECT_EQ(ask(0, 4), Filled::exists);
  EXPECT_EQ(ask(4, 1), Filled::unregistered);
  EXPECT_EQ(ask(0, 8), Filled::unregistered);
  program.talk().progress = 4;
  EXPECT_EQ(program.ended(), 0);
  EXPECT_EQ(ask(0, 1), Filled::dead);
}

TEST(LazyMemories, ManyThreadsTouchWhatTheFillTouches) {
  constexpr uint64_t kPages = 4096;
  constexpr int kThreads = 16;
  LazyProgram program(kPages, [&](char* base, Talk&) {
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&, t] {
        std::vector<uint64_t> order(kPages);
        std::iota(order.begin(), order.end(), 0);
        if (t % 3 == 1) std::reverse(order.begin(), order.end());
        if (t % 3 == 2) std::shuffle(order.begin(), order.end(), std::mt19937_64(static_cast<uint64_t>(t)));
        for (const uint64_t page : order) wrong += is_as_at_source(base, page) ? 0 : 1;
      });
    for (std::thread& t : threads) t.join();
    return wrong == 0 ? 0 : 1;
  });
  expect_good_end(program, {});
}

// A page whose place changes under the fill.
TEST(LazyMemories, NoPageIsLostThatIsMovedToAndFro) {
  constexpr uint64_t kPages = 64;
  for (uint64_t round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    LazyProgram program(kPages, [](char* base, Talk& talk) {
      const size_t bytes = kPages * kPageSize;
      char* places[2] = {base,
                         static_cast<char*>(::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))};
      for (int i = 0; talk.progress == 0 || i % 2 != 0; ++i)
        ::mremap(places[i % 2], bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, places[(i + 1) % 2]);
      for (uint64_t page = 0; page < kPages; ++page)
        if (!is_as_at_source(base, page)) return 1;
      return 0;
    });
    Daemon daemon(program, {.fill = true, .seed = round});
    program.go();
    EXPECT_TRUE(daemon.becomes_whole());
    program.talk().progress = 1;
    ASSERT_EQ(program.ended(), 0);
  }
}

TEST(LazyMemories, WhoWaitsForAPageThatIsDiscardedOrMovedGoesOn) {
  for (const bool moves : {false, true}) {
    LazyProgram program(20, [moves](char* base, Talk& talk) {
      std::atomic<int> got{-1};
      std::thread waits([&] { got = *static_cast<const volatile char*>(base + 2 * kPageSize); });
      while (talk.progress == 0) ::usleep(50);
      const int flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
      if (moves ? ::mremap(base, 4 * kPageSize, 4 * kPageSize, flags) == MAP_FAILED
                : ::madvise(base + kPageSize, 2 * kPageSize, MADV_DONTNEED) != 0)
        return 2;
      waits.join();
      return got == 0 ? 0 : 1;
    });
    std::vector<LazyMemory> all;
    all.push_back(program.register_memory());
    LazyMemories memories(std::move(all), [&](MemoryId, uint64_t) { program.talk().progress = 1; });
    program.go();
    const Deadline deadline = Deadline::in(kPatience);
    while (!memories.whole() && !deadline.passed()) memories.serve(std::chrono::milliseconds(10));
    EXPECT_TRUE(memories.whole());
    EXPECT_EQ(program.ended(), 0);
  }
}

TEST(LazyMemories, PagesComeWhereTheyAreMissingAndOnlyAnnouncedOnes) {
  LazyProgram program(20, [](char* base, Talk& talk) {
    if (::fork() == 0) {
      talk.progress = 1;
      while (talk.progress != 2) ::usleep(50);
      ::_exit(is_as_at_source(base, 1) ? 0 : 1);
    }
    int status = 0;
    ::wait(&status);
    return status == 0 && is_as_at_source(base, 1) && is_as_at_source(base, 4) ? 0 : 1;
  });
  Daemon daemon(program, {.fill = false});
  LazyMemories& memories = daemon.memories();
  program.go();
  // The child may run before its memory is listed.
  const Deadline deadline = Deadline::in(kPatience);
  while ((program.talk().progress != 1 || memories.spaces() != 2) && !deadline.passed()) ::usleep(50);
  EXPECT_EQ(memories.spaces(), 2u);
  EXPECT_EQ(memories.missing_pages(), 2 * 16u);
  memories.write(kMemory, program.base(), daemon.data(program.base(), 4));
  EXPECT_EQ(memories.missing_pages(), 2 * 12u) << "both have it from one answer";
  memories.write(kMemory, program.base(), daemon.data(program.base(), 4));  // once more: nobody misses it

  const std::vector<std::byte> page(kPageSize), more(5 * kPageSize);
  EXPECT_THROW(memories.write({MemoryId::Kind::task, 8}, program.base(), page), Corrupt);
  EXPECT_THROW(memories.write({MemoryId::Kind::shmem, 7}, program.base(), page), Corrupt);
  EXPECT_THROW(memories.write(kMemory, program.base() + 4 * kPageSize, page), Corrupt) << "it does not exist there";
  EXPECT_THROW(memories.write(kMemory, program.base() + 20 * kPageSize, page), Corrupt);
  EXPECT_THROW(memories.write(kMemory, program.base(), more), Corrupt) << "one too many";
  EXPECT_THROW(memories.write(kMemory, program.base() + 8, page), Corrupt);
  EXPECT_THROW(memories.write(kMemory, program.base(), std::span(page).first(100)), Corrupt);
  EXPECT_THROW(memories.write(kMemory, UINT64_MAX - kPageSize + 1, page), Corrupt);
  program.talk().progress = 2;
  EXPECT_EQ(program.ended(), 0);
  EXPECT_TRUE(daemon.becomes_whole()) << "dead memory misses nothing";
  EXPECT_EQ(daemon.asked(), 0u) << "pages that were there were asked for";
}

TEST(LazyMemories, NothingIsMissingOfAProgramThatIsGone) {
  for (int how = 0; how < 3; ++how) {
    SCOPED_TRACE(how);
    LazyProgram program(200, [&](char* base, Talk& talk) {
      if (how == 1 && ::fork() == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) ::pause();
      }
      if (how == 2) ::execl("/bin/sleep", "sleep", "1000", nullptr);
      return how == 0 ? 0 : Walk(base, 200, 3, talk).run(1 << 30, 0);
    });
    Daemon daemon(program, {.fill = false});
    program.go();
    if (how == 1) {
      const Deadline walking = Deadline::in(kPatience);
      while (program.talk().progress < 100 && !walking.passed()) ::usleep(50);
      ASSERT_GE(program.talk().progress, 100u);
      ::kill(program.pid(), SIGKILL);
      program.ended();
    }
    EXPECT_TRUE(daemon.becomes_whole());
    const Deadline deadline = Deadline::in(kPatience);
    while (daemon.memories().spaces() > 0 && !deadline.passed()) ::usleep(500);
    EXPECT_EQ(daemon.memories().spaces(), 0u) << "descriptors of dead memory are kept";
  }
}

}  // namespace
}  // namespace migrate
