// Memory that takes part in rounds by content: shared memory, memfds, private copies of file pages.
#include "core/memory/track_contents.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <new>

#include "core/base/deadline.h"
#include "core/memory/dirty_tracker.h"
#include "tests/core/tracking.h"

namespace migrate {
namespace {

class TrackContents : public testing::Test {
 protected:
  struct Steps {
    std::atomic<uint32_t> done{0}, go{0};
  };
  void SetUp() override {
    if (!DirtyTracker::cannot_track(Pid(::getpid()), MappingReader()).empty())
      GTEST_SKIP() << "this kernel cannot track";
    void* at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    steps_ = new (at) Steps;
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    if (steps_ != nullptr) ::munmap(steps_, kPageSize);  // or later tests find it in what they fork
  }
  /// A program that runs `body`, up to its first done().
  void start(const std::function<void()>& body) {
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      body();
      for (;;) ::pause();
    }
    wait_for(1);
    tracker_.emplace(DirtyTracker::Options{.root = Pid(pid_), .by_content = true}, *log_);
  }
  void done() const {
    const uint32_t n = ++steps_->done;
    while (steps_->go < n) ::usleep(100);
  }
  void go_on() const { wait_for(++steps_->go + 1); }
  void wait_for(uint32_t n) const {
    const Deadline deadline = Deadline::in(std::chrono::seconds(20));
    while (steps_->done < n) {
      if (deadline.passed()) throw Error("the program does not go on");
      ::usleep(200);
    }
  }

  DirtyTracker::Round round() {
    DirtyTracker::Round round = tracker_->next_round();
    receiver_.apply(round);
    return round;
  }
  /// Pages of shared objects in a round, but for that of the steps.
  static uint64_t shared_pages(const DirtyTracker::Round& round, const char* memfd) {
    uint64_t pages = 0;
    for (const TreeLayout::Object& object : round.layout.objects) {
      if (!object.memfd || object.name != memfd) continue;
      for (const PageSource& source : round.sources)
        if (source.memory == MemoryId{MemoryId::Kind::shmem, object.id}) pages += source.pages();
    }
    return pages;
  }
  std::string finish() { return receiver_.finish(*tracker_, Pid(pid_), *log_); }

  static char* map(int fd, size_t pages, int flags) {
    return static_cast<char*>(::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, flags, fd, 0));
  }

  LoggerPtr log_ = null_logger();
  Steps* steps_ = nullptr;
  pid_t pid_ = 0;
  std::optional<DirtyTracker> tracker_;
  ModelReceiver receiver_;
};

TEST_F(TrackContents, MemfdsGrowShrinkAndAreWrittenThroughDescriptors) {
  start([&] {
    const int fd = ::memfd_create("m", MFD_CLOEXEC);
    static_cast<void>(!::ftruncate(fd, 100 * kPageSize));
    char* area = map(fd, 200, MAP_SHARED);
    std::memset(area, 1, 100 * kPageSize);
    done();
    static_cast<void>(!::pwrite(fd, "x", 1, 3 * kPageSize + 7));
    static_cast<void>(!::ftruncate(fd, 150 * kPageSize + 9));
    area[140 * kPageSize] = 5;
    ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10 * kPageSize, 4 * kPageSize);
    done();
    static_cast<void>(!::ftruncate(fd, 50 * kPageSize));
    done();
    static_cast<void>(!::ftruncate(fd, 120 * kPageSize + 9));
    static_cast<void>(!::pwrite(fd, "z", 1, 120 * kPageSize));
    static_cast<void>(!::pwrite(fd, "y", 1, 70 * kPageSize));
    ::munmap(area, 200 * kPageSize);
    done();
  });
  EXPECT_EQ(shared_pages(round(), "m"), 100u);
  go_on();
  const DirtyTracker::Round second = round();
  EXPECT_EQ(shared_pages(second, "m"), 2u);
  EXPECT_EQ(second.untracked_shared_pages, 0u);
  go_on();
  EXPECT_EQ(shared_pages(round(), "m"), 0u);
  go_on();
  EXPECT_EQ(shared_pages(round(), "m"), 2u) << "open is enough";
  EXPECT_EQ(finish(), "");
}

TEST_F(TrackContents, WhatWasThrownAwayOfAFileStaysAway) {
  start([&] {
    const int fd = ::open("/proc/self/exe", O_RDONLY);
    char* area = map(fd, 40, MAP_PRIVATE);
    ::close(fd);
    for (size_t i = 0; i < 30; ++i) area[i * kPageSize] ^= 1;
    done();
    area[3 * kPageSize + 1] ^= 1;
    ::madvise(area + 5 * kPageSize, 3 * kPageSize, MADV_DONTNEED);
    done();
    area[6 * kPageSize] ^= 3;
    ::madvise(area + 20 * kPageSize, 2 * kPageSize, MADV_DONTNEED);
    done();
  });
  const DirtyTracker::Round first = round();
  ASSERT_FALSE(first.layout.tasks.empty());
  uint64_t areas = 0;
  for (const TreeLayout::Area& area : first.layout.tasks.front().areas) areas += area.file.empty() ? 0 : 1;
  EXPECT_GE(areas, 1u);
  go_on();
  const DirtyTracker::Round second = round();
  uint64_t gone = 0;
  for (const PageDiscard& discard : second.discards) gone += discard.pages;
  EXPECT_GE(gone, 3u);
  tracker_->put_back(tracker_->next_round());
  go_on();
  EXPECT_EQ(finish(), "");
}

TEST_F(TrackContents, OneOfManyIsFoundInATerabyte) {
  start([&] {
    const int fd = ::memfd_create("vast", MFD_CLOEXEC);
    static_cast<void>(!::ftruncate(fd, off_t{1} << 40));
    for (off_t i = 0; i < 64; ++i) static_cast<void>(!::pwrite(fd, "a", 1, i << 34));
    done();
    static_cast<void>(!::pwrite(fd, "b", 1, off_t{17} << 34));
    done();
  });
  EXPECT_EQ(shared_pages(round(), "vast"), 64u);
  go_on();
  EXPECT_EQ(shared_pages(round(), "vast"), 1u);
  EXPECT_EQ(finish(), "");
}

// ---- the comparing itself

TEST(ContentTrackerTest, SendsEachContentOnceAndForgets) {
  const Fd object(::memfd_create("object", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(object.get(), 1000 * kPageSize), 0);
  const MemoryId id{MemoryId::Kind::shmem, 7};
  const auto write = [&](uint64_t page, char value) {
    ASSERT_EQ(::pwrite(object.get(), &value, 1, static_cast<off_t>(page * kPageSize)), 1);
  };
  ContentTracker tracker;
  PageSet pages;
  for (uint64_t i = 0; i < 600; i += 2) {
    write(i, 1);
    pages.append(i * kPageSize, (i + 1) * kPageSize);
  }
  const auto next = [&] {
    tracker.begin();
    ContentTracker::Part part;
    tracker.add({.memory = id, .pages = pages, .fd = object.dup(), .zero_ok = true}, part);
    return part;
  };
  EXPECT_EQ(next().pages, 300u);
  EXPECT_EQ(next().pages, 0u);
  write(4, 2);
  tracker.put_back();  // of a round that changed nothing
  const ContentTracker::Part second = next();
  EXPECT_EQ(second.pages, 1u);
  ASSERT_EQ(second.sources.size(), 1u);
  EXPECT_FALSE(second.sources[0].runs.at(0).zero_ok) << "the receiver has other contents";
  write(4, 1);  // while that was being sent: what was sent is what was compared
  EXPECT_EQ(next().pages, 1u);
  write(6, 9);
  next();
  tracker.put_back();
  EXPECT_EQ(next().pages, 1u) << "it was not sent";
  pages = PageSet(0, kPageSize);
  const ContentTracker::Part fewer = next();
  uint64_t gone = 0;
  for (const PageDiscard& discard : fewer.discards) gone += discard.pages;
  EXPECT_EQ(gone, 299u);
  tracker.forget(id);
  EXPECT_EQ(next().pages, 1u);

  PageSource all{.memory = id, .runs = {{0, 2, true}}, .fd = object.dup()};
  std::vector<PageDiscard> discards;
  tracker.reduce(all, discards);
  EXPECT_EQ(all.runs.size(), 1u);
  EXPECT_EQ(all.runs.at(0).address, kPageSize) << "only the page that it never saw";
  EXPECT_TRUE(discards.empty());
}

}  // namespace
}  // namespace migrate
