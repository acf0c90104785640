// Dirty tracking of small running trees: a model receiver must end with the memory of the stopped tree.
#include "core/memory/dirty_tracker.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>

#include "core/base/procfs.h"
#include "tests/core/forked_programs.h"
#include "tests/core/tracking.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

/// Memory that the test and its forked programs share.
struct Shared {
  std::atomic<uint32_t> ready{0};
  std::atomic<uint32_t> go{0};  ///< the step that a program may take next
  std::atomic<uint32_t> done{0};
  std::atomic<uint64_t> progress[8]{};
  std::atomic<uint64_t> address{0};
};

class DirtyTrackerTest : public ForkedPrograms<Shared> {
 protected:
  Pid start(const std::function<void()>& body) { return Pid(fork_program(body)); }
  /// In the program: says that a step was done and waits for the word to go on.
  void step_done() {
    const uint32_t n = ++shared_->done;
    if (!eventually([&] { return shared_->go >= n; }, std::chrono::seconds(120))) ::_exit(3);
  }
  /// In the test: lets the program take one more step.
  bool next_step() {
    const uint32_t n = ++shared_->go;
    return eventually([&] { return shared_->done > n; });
  }
  bool first_step() {
    return eventually([&] { return shared_->done > 0; });
  }
};

char* map(size_t pages) {
  return static_cast<char*>(
      ::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

TEST_F(DirtyTrackerTest, ThisKernelCanTrack) {
  EXPECT_EQ(DirtyTracker::cannot_track(Pid(::getpid()), MappingReader()), "");
}

TEST_F(DirtyTrackerTest, RoundsHoldWhatWasWritten) {
  const Pid pid = start([&] {
    char* area = map(64);
    std::memset(area, 1, 64 * kPageSize);
    shared_->address = reinterpret_cast<uint64_t>(area);
    step_done();
    area[3 * kPageSize] = 2;
    std::memset(area + 10 * kPageSize, 3, 5 * kPageSize);
    ::madvise(area + 20 * kPageSize, 4 * kPageSize, MADV_DONTNEED);
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  DirtyTracker tracker({.root = pid}, *log_);
  ModelReceiver receiver;
  const DirtyTracker::Round all = tracker.next_round();
  EXPECT_GT(all.pages, 64u);
  ASSERT_EQ(all.layout.tasks.size(), 1u);
  receiver.apply(all);
  ASSERT_TRUE(next_step());
  const DirtyTracker::Round changed = tracker.next_round();
  const uint64_t area = shared_->address;
  EXPECT_TRUE(has_page(changed, area + 3 * kPageSize));
  for (uint64_t i = 10; i < 15; ++i) EXPECT_TRUE(has_page(changed, area + i * kPageSize)) << i;
  EXPECT_FALSE(has_page(changed, area + 4 * kPageSize));
  EXPECT_LT(changed.pages, 40u);
  ASSERT_EQ(changed.discards.size(), 1u);
  EXPECT_EQ(changed.discards.front().address, area + 20 * kPageSize);
  EXPECT_EQ(changed.discards.front().pages, 4u);
  receiver.apply(changed);
  EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
}

TEST_F(DirtyTrackerTest, ThreadsAndChildrenWriteOn) {
  const Pid pid = start([&] {
    const auto write_on = [&](int slot) {
      char* area = map(256);
      for (uint64_t n = 0;; ++n) {
        area[(n * 37 % 256) * kPageSize + n % kPageSize] = static_cast<char>(n);
        shared_->progress[slot] = n;
      }
    };
    if (::fork() == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      std::thread([&] { write_on(0); }).detach();
      write_on(1);
    }
    std::thread([&] { write_on(2); }).detach();
    write_on(3);
  });
  ASSERT_TRUE(eventually([&] {
    for (int i = 0; i < 4; ++i)
      if (shared_->progress[i] < 1000) return false;
    return true;
  }));
  DirtyTracker tracker({.root = pid}, *log_);
  ModelReceiver receiver;
  for (int i = 0; i < 8; ++i) {
    const DirtyTracker::Round round = tracker.next_round();
    ASSERT_EQ(round.layout.tasks.size(), 2u);
    receiver.apply(round);
    const uint64_t seen = shared_->progress[3];
    ASSERT_TRUE(eventually([&] { return shared_->progress[3] > seen + 100; }));
  }
  EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
}

uint64_t page_table_kib(Pid pid) { return std::stoull(ProcDir(pid.get()).status()["VmPTE"]); }

TEST_F(DirtyTrackerTest, ReservationsCostNothing) {
  constexpr size_t kTerabyte = size_t{1} << 40;
  const Pid pid = start([&] {
    void* at = ::mmap(nullptr, kTerabyte, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char* area = static_cast<char*>(at);
    for (size_t i = 0; i < 8; ++i) area[i * (kTerabyte / 8)] = 1;
    shared_->address = reinterpret_cast<uint64_t>(area);
    step_done();
    area[kTerabyte / 2 + 5 * kPageSize] = 1;
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  const uint64_t before = page_table_kib(pid);
  {
    DirtyTracker tracker({.root = pid}, *log_);
    ModelReceiver receiver;
    const auto start = std::chrono::steady_clock::now();
    receiver.apply(tracker.next_round());
    EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(2000));
    ASSERT_TRUE(next_step());
    const DirtyTracker::Round second = tracker.next_round();
    EXPECT_TRUE(has_page(second, shared_->address + kTerabyte / 2 + 5 * kPageSize));
    receiver.apply(second);
    EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
  }
  EXPECT_LT(page_table_kib(pid), before + 1024);
}

TEST_F(DirtyTrackerTest, ATaskIsTakenInAfterForkAndExec) {
  const Pid pid = start([&] {
    char* area = map(32);
    std::memset(area, 7, 32 * kPageSize);
    step_done();
    if (::fork() == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      area[0] = 8;
      step_done();
      ::execl("/bin/sleep", "sleep", "1000", nullptr);
    }
    ::pause();
  });
  ASSERT_TRUE(first_step());
  DirtyTracker tracker({.root = pid}, *log_);
  ModelReceiver receiver;
  receiver.apply(tracker.next_round());
  ASSERT_TRUE(next_step());
  const DirtyTracker::Round forked = tracker.next_round();
  ASSERT_EQ(forked.layout.tasks.size(), 2u);
  EXPECT_EQ(forked.layout.tasks[1].ppid, pid.get());
  receiver.apply(forked);
  ++shared_->go;
  const ProcDir child(forked.layout.tasks[1].pid);
  ASSERT_TRUE(eventually([&] { return child.stat().comm == "sleep" && child.stat().state == 'S'; }));
  const DirtyTracker::Round executed = tracker.next_round();
  EXPECT_FALSE(executed.discards.empty());
  receiver.apply(executed);
  EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
}

TEST_F(DirtyTrackerTest, MovedAndReplacedMappingsAreSentAgain) {
  const Pid pid = start([&] {
    char* area = map(32);
    std::memset(area, 1, 32 * kPageSize);
    shared_->address = reinterpret_cast<uint64_t>(area);
    step_done();
    char* moved = static_cast<char*>(
        ::mremap(area, 16 * kPageSize, 16 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, area + (uint64_t{1} << 30)));
    ::mmap(area, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    area[kPageSize] = 0;  // exists, and is zero
    shared_->progress[0] = reinterpret_cast<uint64_t>(moved);
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  DirtyTracker tracker({.root = pid}, *log_);
  ModelReceiver receiver;
  receiver.apply(tracker.next_round());
  ASSERT_TRUE(next_step());
  const DirtyTracker::Round round = tracker.next_round();
  for (uint64_t i = 0; i < 16; ++i) EXPECT_TRUE(has_page(round, shared_->progress[0] + i * kPageSize)) << i;
  ASSERT_TRUE(has_page(round, shared_->address + kPageSize));
  for (const PageSource& source : round.sources)
    for (const PageRun& run : source.runs) EXPECT_FALSE(run.address == shared_->address + kPageSize && run.zero_ok);
  receiver.apply(round);
  EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
}

TEST_F(DirtyTrackerTest, WhatWasForgottenIsSentAgain) {
  const Pid pid = start([&] {
    std::memset(map(64), 1, 64 * kPageSize);
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  DirtyTracker tracker({.root = pid}, *log_);
  const uint64_t all = tracker.next_round().pages;
  EXPECT_LT(tracker.next_round().pages, 16u);
  tracker.forget({MemoryId::Kind::task, static_cast<uint64_t>(pid.get())});
  EXPECT_GE(tracker.next_round().pages + 8, all);
}

TEST_F(DirtyTrackerTest, TreesThatWriteUnseenAreNamed) {
  const auto start_with = [&](const std::function<void()>& prepare) {
    shared_->done = shared_->go = 0;
    const Pid pid = start([&] {
      prepare();
      step_done();
      ::pause();
    });
    EXPECT_TRUE(first_step());
    return pid;
  };
  const auto cannot_track = [](Pid root) { return DirtyTracker::cannot_track(root, MappingReader::best()); };
  const std::string userfaultfd = cannot_track(start_with([] { ::syscall(SYS_userfaultfd, 1); }));
  EXPECT_NE(userfaultfd.find("userfaultfd of its own"), std::string::npos) << userfaultfd;
  const std::string aio = cannot_track(start_with([] {
    unsigned long context = 0;
    ::syscall(SYS_io_setup, 8, &context);
  }));
  EXPECT_NE(aio.find("asynchronous I/O"), std::string::npos) << aio;
  EXPECT_EQ(cannot_track(start_with([] {})), "");
}

TEST_F(DirtyTrackerTest, SharedMemoryIsComparedByContent) {
  const Pid pid = start([&] {
    char* area =
        static_cast<char*>(::mmap(nullptr, 64 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    std::memset(area, 1, 48 * kPageSize);
    step_done();
    if (const pid_t child = ::fork(); child == 0) {  // writes through its own mapping, and is gone
      area[3 * kPageSize] = 2;
      area[60 * kPageSize] = 2;
      ::_exit(0);
    } else {
      ::waitpid(child, nullptr, 0);
    }
    ::madvise(area + 10 * kPageSize, 4 * kPageSize, MADV_REMOVE);
    step_done();
    area[5 * kPageSize] = 9;
    std::memset(area + 20 * kPageSize, 0, kPageSize);
    ::madvise(area + 30 * kPageSize, kPageSize, MADV_REMOVE);
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  DirtyTracker tracker({.root = pid, .by_content = true}, *log_);
  ModelReceiver receiver;
  const DirtyTracker::Round first = tracker.next_round();
  EXPECT_EQ(first.layout.objects.size(), 2u);  // and that of the test
  EXPECT_EQ(first.untracked_shared_pages, 0u);
  receiver.apply(first);
  ASSERT_TRUE(next_step());
  tracker.put_back(tracker.next_round());
  const DirtyTracker::Round second = tracker.next_round();
  uint64_t pages = 0;
  for (const PageSource& source : second.sources)
    if (source.memory.kind == MemoryId::Kind::shmem) pages += source.pages();
  EXPECT_GE(pages, 2u);
  EXPECT_LE(pages, 3u);  // the words between test and program are one
  receiver.apply(second);
  ASSERT_TRUE(next_step());
  EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
}

// ---- the end of tracking leaves no trace

/// Mappings as /proc/PID/smaps tells them, without counters.
std::string mappings_of(Pid pid) {
  std::string out;
  for (const Vma& vma : parse_smaps(ProcDir(pid.get()).read("smaps"))) {
    out += vma.describe() + " " + std::to_string(vma.flags) + "\n";
  }
  return out;
}

uint64_t huge_kib(Pid pid) {
  const std::string text = ProcDir(pid.get()).read("smaps_rollup");
  return std::stoull(text.substr(text.find("AnonHugePages:") + 14));
}

TEST_F(DirtyTrackerTest, NothingIsLeftBehind) {
  const Pid pid = start([&] {
    char* area = map(2048);
    char* aligned =
        reinterpret_cast<char*>((reinterpret_cast<uint64_t>(area) + kHugePageSize - 1) & ~(kHugePageSize - 1));
    ::madvise(aligned, 2 * kHugePageSize, MADV_HUGEPAGE);
    std::memset(aligned, 1, 2 * kHugePageSize);
    shared_->address = reinterpret_cast<uint64_t>(aligned);
    step_done();
    aligned[5 * kPageSize] = 2;  // splits a huge page
    step_done();
    const bool moved = ::mremap(aligned, kHugePageSize, kHugePageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
                                aligned + (uint64_t{1} << 33)) != MAP_FAILED;
    const bool grown = ::sbrk(1 << 20) != reinterpret_cast<void*>(-1);
    shared_->progress[0] = moved && grown;
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  const std::string mappings = mappings_of(pid);
  const std::vector<int> descriptors = ProcDir(pid.get()).descriptors();
  const uint64_t huge = huge_kib(pid);
  ASSERT_EQ(huge, 2 * kHugePageSize / 1024) << "transparent huge pages are off here";
  {
    DirtyTracker tracker({.root = pid}, *log_);
    tracker.next_round();
    ASSERT_TRUE(next_step());
    tracker.next_round();
    EXPECT_LT(huge_kib(pid), huge);
    EXPECT_NE(mappings_of(pid), mappings);
    EXPECT_EQ(ProcDir(pid.get()).descriptors(), descriptors);
  }
  EXPECT_EQ(mappings_of(pid), mappings);
  EXPECT_EQ(huge_kib(pid), huge);
  EXPECT_EQ(ProcDir(pid.get()).descriptors(), descriptors);
  ASSERT_TRUE(next_step());
  EXPECT_EQ(shared_->progress[0], 1u);
}

TEST_F(DirtyTrackerTest, EndedAtRandomMoments) {
  const Pid pid = start([&] {
    char* area = map(2048);
    const uint64_t first = (reinterpret_cast<uint64_t>(area) + kHugePageSize - 1) / kHugePageSize * kHugePageSize;
    char* aligned = reinterpret_cast<char*>(first);
    ::madvise(aligned, kHugePageSize, MADV_HUGEPAGE);
    std::memset(aligned, 1, 2 * kHugePageSize);
    step_done();
    for (uint64_t n = 0;; ++n) {
      aligned[n * 7919 * kPageSize % (2 * kHugePageSize)] = static_cast<char>(n);
      shared_->progress[0] = n;
    }
  });
  shared_->go = 1;
  ASSERT_TRUE(eventually([&] { return shared_->progress[0] > 1000; }));
  const std::string mappings = mappings_of(pid);
  const std::vector<int> descriptors = ProcDir(pid.get()).descriptors();
  const uint64_t huge = huge_kib(pid);
  for (unsigned i = 0; i < 12; ++i) {
    {
      DirtyTracker tracker({.root = pid}, *log_);
      for (unsigned rounds = 0; rounds < i % 4; ++rounds) {
        tracker.next_round();
        ::usleep(i * 300);
      }
    }
    EXPECT_EQ(mappings_of(pid), mappings);
    EXPECT_EQ(ProcDir(pid.get()).descriptors(), descriptors);
    EXPECT_EQ(huge_kib(pid), huge);
    const uint64_t seen = shared_->progress[0];
    ASSERT_TRUE(eventually([&] { return shared_->progress[0] > seen + 100; }));
  }
}

// Also of a page that is written and protected in swap no write is missed.
TEST_F(DirtyTrackerTest, PagesInSwap) {
  const std::string memory = read_file_at(AT_FDCWD, "/proc/meminfo");
  if (std::stoull(memory.substr(memory.find("SwapFree:") + 9)) < 65536) GTEST_SKIP() << "this machine has no swap";
  const Pid pid = start([&] {
    char* area = map(64);
    std::memset(area, 1, 64 * kPageSize);
    ::madvise(area, 64 * kPageSize, MADV_PAGEOUT);
    step_done();
    std::memset(area + 8 * kPageSize, 2, 8 * kPageSize);
    ::madvise(area, 64 * kPageSize, MADV_PAGEOUT);
    step_done();
    static_cast<void>(*static_cast<volatile char*>(area + 20 * kPageSize));
    ::madvise(area + 30 * kPageSize, 4 * kPageSize, MADV_DONTNEED);
    step_done();
    ::pause();
  });
  ASSERT_TRUE(first_step());
  DirtyTracker tracker({.root = pid}, *log_);
  ModelReceiver receiver;
  receiver.apply(tracker.next_round());
  ASSERT_TRUE(next_step());
  receiver.apply(tracker.next_round());
  ASSERT_TRUE(next_step());
  EXPECT_EQ(receiver.finish(tracker, pid, *log_), "");
}

// Whoever tracks is killed at any stage of a visit, and at the first registered mapping: its userfaultfd closes with
// it, and nothing is registered or protected any more.
TEST_F(DirtyTrackerTest, OurDeathLeavesNothingBehind) {
  const Pid pid = start([&] {
    char* area = map(64);
    for (uint64_t n = 0;; ++n) {
      area[n % 64 * kPageSize] = static_cast<char>(n);
      shared_->progress[0] = n;
    }
  });
  ASSERT_TRUE(eventually([&] { return shared_->progress[0] > 1000; }));
  const std::string mappings = mappings_of(pid);
  const std::vector<int> descriptors = ProcDir(pid.get()).descriptors();
  bool died = true;
  uint64_t stage = 0;
  for (; died && stage < 60; ++stage) {
    const Pid tracker = start([&] {
      uint64_t n = 0;
      bool registered = false;
      const auto die = [&](const char* name) {
        if (!registered && n++ == stage) ::raise(SIGKILL);
        registered = std::string_view(name) == "mapping registered";
      };
      DirtyTracker dying({.root = pid, .visit_hook = die}, *log_);
      dying.next_round();
      ::_exit(7);
    });
    died = WIFSIGNALED(reap(tracker.get()));
    EXPECT_TRUE(eventually([&] { return mappings_of(pid) == mappings; })) << "stage " << stage;
    EXPECT_EQ(ProcDir(pid.get()).descriptors(), descriptors) << "stage " << stage;
    const uint64_t seen = shared_->progress[0];
    ASSERT_TRUE(eventually([&] { return shared_->progress[0] > seen + 100; })) << "stage " << stage;
  }
  EXPECT_GT(stage, 18u);
  EXPECT_LT(stage, 60u);
}

}  // namespace
}  // namespace migrate
