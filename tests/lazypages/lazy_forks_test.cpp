// What a program that forks while pages are missing makes its daemon take.
#include <malloc.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <thread>

#include "tests/lazypages/lazy_walk.h"

namespace migrate {
namespace {

using namespace lazy_testing;

/// Bytes in use of this process.
uint64_t resident() {
  ::malloc_trim(0);
  uint64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * kPageSize;
}

rlim_t limit_of_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

/// So often a fork that waits is to be asked for.
constexpr uint64_t kTries = 4;

/// Nobody tells when these come true.
template <class Condition>
void wait_until(Condition condition) {
  for (const Deadline deadline = Deadline::in(kPatience); !condition() && !deadline.passed();) ::usleep(100);
}

/// Forks children that stay until it is enough.
int fork_all(Talk& talk, int children) {
  for (int i = 0; i < children; ++i) {
    const pid_t child = ::fork();
    if (child < 0) return 2;
    if (child > 0) continue;
    ++talk.progress;
    while (!talk.enough) ::usleep(5000);
    ::_exit(0);
  }
  int bad = 0, status = 0;
  while (::wait(&status) > 0) bad += status == 0 ? 0 : 1;
  return bad;
}

// It was more than a mebibyte for each child.
TEST(LazyForks, TakeLittleAlsoWhenWhatIsMissingIsScattered) {
  constexpr uint64_t kPages = 16384;
  for (const bool scattered : {false, true}) {
    SCOPED_TRACE(scattered);
    const int children = scattered ? 60 : 300;
    LazyProgram program(kPages, [&](char* base, Talk& talk) {
      for (uint64_t page = 0; scattered && page < kPages; page += 2)
        ::madvise(base + page * kPageSize, kPageSize, MADV_DONTNEED);
      return fork_all(talk, children);
    });
    Daemon daemon(program, {.fill = false});
    const uint64_t before = resident();
    program.go();
    const auto all = static_cast<uint64_t>(children) + 1;
    wait_until([&] { return program.talk().progress + 1 >= all && daemon.memories().spaces() >= all; });
    EXPECT_EQ(daemon.memories().spaces(), all);
    const uint64_t each = (resident() - before) / all;
    EXPECT_LT(each, 96U << 10);
    EXPECT_LT(each, daemon.memories().used() / all) << "it is counted too low";
    program.talk().enough = true;
    EXPECT_EQ(program.ended(), 0);
    EXPECT_TRUE(daemon.becomes_whole());
  }
}

TEST(LazyForks, WaitWhileThereIsNoRoomAndGoOnWhenOthersHaveEnded) {
  constexpr int kChildren = 12;
  LazyProgram program(400, [&](char* base, Talk& talk) {
    if (const int bad = fork_all(talk, kChildren); bad != 0) return bad;
    return Walk(base, 400, 1, talk).run(0, 2);
  });
  Daemon daemon(program, {.fill = false});
  LazyMemories& memories = daemon.memories();
  const rlim_t limit = limit_of_files();
  memories.allow(memories.used() * 9 / 2);
  program.go();
  wait_until([&] { return program.talk().progress >= 3 && memories.refusals() >= kTries; });
  EXPECT_EQ(program.talk().progress, 3u);
  EXPECT_EQ(memories.spaces(), 4u);
  program.talk().enough = true;
  EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
  EXPECT_TRUE(daemon.becomes_whole());
  daemon.stop();
  EXPECT_EQ(limit_of_files(), limit);
}

// Those who must end before it goes on get what they miss, and so does everybody afterwards.
TEST(LazyForks, ThatWaitKeepNoPagesFromOthers) {
  constexpr uint64_t kPages = 400;
  for (const bool fill : {false, true}) {
    SCOPED_TRACE(fill);
    LazyProgram program(kPages, [&](char* base, Talk& talk) {
      for (int i = 0; i < 8; ++i)
        if (::fork() == 0) ::_exit(Walk(base, kPages, 1, talk).run(0, 2));
      int bad = 0, status = 0;
      while (::wait(&status) > 0) bad += status == 0 ? 0 : 1;
      return bad + Walk(base, kPages, 1, talk).run(0, 2);
    });
    Daemon daemon(program, {.fill = fill});
    daemon.memories().allow(0);
    program.go();
    EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
    EXPECT_TRUE(daemon.becomes_whole());
  }
}

// But for the first, and all else is told and answered meanwhile.
TEST(LazyForks, AloneWaitForRoom) {
  LazyProgram program(400, [&](char* base, Talk& talk) {
    const pid_t first = ::fork();
    if (first == 0) {
      while (!talk.enough) ::usleep(5000);
      ::_exit(0);
    }
    for (uint64_t page = 100; page < 200; page += 2) {
      if (::madvise(base + page * kPageSize, kPageSize, MADV_DONTNEED) != 0 || base[page * kPageSize] != 0) return 3;
      ++talk.progress;
    }
    return fork_all(talk, 1);
  });
  Daemon daemon(program, {.fill = false});
  daemon.memories().allow(0);
  program.go();
  wait_until([&] { return program.talk().progress >= 50 && daemon.memories().refusals() >= kTries; });
  EXPECT_EQ(program.talk().progress, 50u);
  EXPECT_EQ(daemon.memories().spaces(), 2u);
  daemon.memories().allow(SpaceRoom::kMost);
  program.talk().enough = true;
  EXPECT_EQ(program.ended(), 0);
  EXPECT_TRUE(daemon.becomes_whole());
}

// Threads of a feed wait for sockets meanwhile: poll(2) refuses more descriptors than the process may have.
TEST(LazyForks, ThatWaitLetOthersWaitForDescriptors) {
  LazyProgram program(400, [](char* base, Talk& talk) {
    if (::fork() == 0) {
      for (uint64_t page = 0; !talk.enough; page = (page + 1) % 400) {
        ::madvise(base + page * kPageSize, kPageSize, MADV_DONTNEED);
        ++talk.progress;
      }
      ::_exit(0);
    }
    return fork_all(talk, 1);
  });
  Daemon daemon(program, {.fill = false});
  daemon.memories().allow(0);
  program.go();
  int refused = 0;
  wait_until([&] {
    std::array<pollfd, 3> none{{{-1, POLLIN, 0}, {-1, POLLIN, 0}, {-1, POLLIN, 0}}};
    for (int i = 0; i < 100; ++i) refused += ::poll(none.data(), none.size(), 0) < 0 && errno == EINVAL ? 1 : 0;
    return program.talk().progress > 10000;
  });
  EXPECT_EQ(refused, 0);
  program.talk().enough = true;
  EXPECT_EQ(program.ended(), 0);
  EXPECT_TRUE(daemon.becomes_whole());
}

// Moved about page by page what is missing takes more than a bit each; nobody pays for that but this process.
TEST(LazyForks, WhoScattersWhatIsMissingByMovesWaitsToo) {
  constexpr uint64_t kPages = 16384, kMoves = kPages / 2;
  LazyProgram program(kPages, [](char* base, Talk& talk) {
    char* to = static_cast<char*>(::mmap(nullptr, kMoves * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (uint64_t i = 0; i < kMoves; ++i, ++talk.progress) {
      const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
      if (::mremap(base + 2 * i * kPageSize, kPageSize, kPageSize, flags, to + i * kPageSize) == MAP_FAILED) return 2;
    }
    const auto word = [](const char* page) { return *reinterpret_cast<const volatile uint64_t*>(page); };
    for (uint64_t i = 0; i < kMoves; i += 64)
      if (word(to + i * kPageSize) != (exists(2 * i) ? word_of(2 * i, 0) : 0) || word(base + 2 * i * kPageSize) != 0)
        return 3;
    return 0;
  });
  Daemon daemon(program, {.fill = false});
  daemon.memories().allow(100 << 10);
  program.go();
  constexpr uint64_t kGrown = 1 << 20;
  wait_until([&] { return daemon.memories().used() >= kGrown && daemon.memories().refusals() > 0; });
  const uint64_t stopped_at = program.talk().progress;
  wait_until([&] { return daemon.memories().refusals() > kTries; });
  EXPECT_EQ(program.talk().progress, stopped_at);
  EXPECT_LT(daemon.memories().used(), 2 * kGrown);
  EXPECT_LT(program.talk().progress, kMoves);
  daemon.memories().allow(SpaceRoom::kMost);
  EXPECT_EQ(program.ended(), 0);
  EXPECT_TRUE(daemon.becomes_whole());
}

TEST(LazyForks, ThatWaitGoOnWhenPagesAreGivenUp) {
  LazyProgram program(20, [](char*, Talk& talk) { return fork_all(talk, 4); });
  Daemon daemon(program, {.fill = false});
  daemon.memories().allow(0);
  program.go();
  program.talk().enough = true;
  daemon.stop();
  daemon.memories().poison();
  EXPECT_EQ(daemon.memories().spaces(), 0u);
  EXPECT_EQ(program.ended(), 0);
}

// Of tasks that end, or that miss nothing any more, nothing is kept that a fork waits for.
TEST(LazyForks, ThatWaitForADescriptorGoOnWhenPagesAreGivenUp) {
  constexpr uint64_t kChildren = 40;
  for (const bool end : {false, true}) {
    SCOPED_TRACE(end);
    LazyProgram program(20, [end](char* base, Talk& talk) {
      const rlimit none{};
      ::setrlimit(RLIMIT_CORE, &none);
      for (uint64_t i = 0; i < kChildren; ++i) {
        if (::fork() > 0) continue;
        ++talk.progress;
        if (end) ::_exit(base[7 * kPageSize] == 0 ? 1 : 2);  // SIGBUS
        while (!talk.enough) ::usleep(5000);
        ::_exit(0);
      }
      talk.enough = true;
      int bad = 0, status = 0;
      while (::wait(&status) > 0)
        bad += (end ? WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS : status == 0) ? 0 : 1;
      return bad;
    });
    Daemon daemon(program, {.fill = false, .serve = false});
    std::vector<Fd> all;  // the rest of the table
    for (Fd fd(::dup(0)); fd; fd = Fd(::dup(0))) all.push_back(std::move(fd));
    program.go();
    wait_until([&] { return daemon.memories().spaces() >= 12 && daemon.memories().refusals() >= kTries; });
    EXPECT_LT(program.talk().progress, kChildren);
    daemon.stop();
    std::atomic<bool> over = false;
    std::thread poison([&] {
      daemon.memories().poison();
      over = true;
    });
    wait_until([&] { return over.load(); });
    EXPECT_TRUE(over) << "it waits for ever";
    all.clear();
    poison.join();
    EXPECT_EQ(program.ended(), 0);
  }
}

}  // namespace
}  // namespace migrate
