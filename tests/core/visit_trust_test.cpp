// Visits of a program whose memory somebody else can write, at any moment: nothing is read or written for it that it
// could not have by itself, and nothing it claims gives it more.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdlib>

#include "core/base/looked_at.h"
#include "core/dump/dump.h"
#include "core/dump/preflight.h"
#include "core/inject/parasite_protocol.h"
#include "core/inject/userfaultfd_visit.h"
#include "core/inject/visit_places.h"
#include "core/memory/dirty_tracker.h"
#include "tests/core/visits.h"

namespace migrate {
namespace {

struct TrustShared {
  std::atomic<uint32_t> ready{0};
  std::atomic<uint64_t> progress{0};
  std::atomic<uint32_t> now{0}, done{0};  ///< for the helper: act; it has
  std::atomic<uint32_t> quit{0};
  std::atomic<pid_t> helper{0};
};

/// Where a visit has mapped M.
RemoteRange area_of(pid_t pid) {
  for (const MapsLine& line : parse_maps(maps_of(pid)))
    if (line.permissions == "rwxs") return line.range;
  return {};
}

class VisitTrustTest : public VisitedPrograms<TrustShared> {
 protected:
  VisitTrustTest() {
    path_ = Fd(check(::mkostemp(name_, O_CLOEXEC), "make", name_));
    const std::vector<std::byte> bytes(kFileBytes, std::byte{'z'});
    write_full(path_.get(), bytes, name_);
  }
  ~VisitTrustTest() override {
    shared_->quit = 1;
    if (shared_->helper != 0) {
      ::kill(shared_->helper, SIGKILL);
      while (::waitpid(shared_->helper, nullptr, __WALL) < 0 && errno == EINTR) {
      }
    }
    ::unlink(name_);
  }
  bool file_is_untouched() {
    std::vector<std::byte> bytes(kFileBytes + 1);
    if (pread_full(path_.get(), bytes, 0, name_) != kFileBytes) return false;
    return std::all_of(bytes.begin(), bytes.end() - 1, [](std::byte b) { return b == std::byte{'z'}; });
  }
  /// A process that shares the caller's memory, and is a sibling of it.
  void share_memory(int (*body)(void*), void* argument, int flags = 0) {
    constexpr size_t kStack = 64 << 10;
    char* stack =
        static_cast<char*>(::mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    shared_->helper = ::clone(body, stack + kStack, CLONE_VM | CLONE_PARENT | SIGCHLD | flags, argument);
    if (shared_->helper < 0) ::_exit(1);
  }

  static constexpr size_t kFileBytes = 64 << 10;
  char name_[32] = "/tmp/visit_trust.XXXXXX";
  Fd path_;
};

/// What is put in the place of M: a file that can only be read, a memfd, a memfd that is cut afterwards.
enum class Bait { file, memfd, cut_memfd };

struct Swapper {
  TrustShared* shared;
  Bait bait;
  const char* file;
};

/// System calls only: it shares everything with a program that does not know of it.
int swap_area(void* argument) {
  auto* self = static_cast<Swapper*>(argument);
  while (self->shared->now == 0) ::sched_yield();
  // The address comes by the test: finding it is not the point.
  const auto address = reinterpret_cast<void*>(self->shared->progress.load());
  const size_t bytes = self->shared->now;
  int fd;
  if (self->bait == Bait::file) {
    fd = ::open(self->file, O_RDONLY);
  } else {
    fd = ::memfd_create("bait", 0);
    if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) ::_exit(1);
  }
  ::mmap(address, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
  if (self->bait == Bait::cut_memfd && ::ftruncate(fd, 0) != 0) ::_exit(1);
  self->shared->done = 1;
  while (self->shared->quit == 0) ::sched_yield();
  return 0;
}

class SwapTest : public VisitTrustTest, public testing::WithParamInterface<Bait> {};

TEST_P(SwapTest, WhatIsPutInThePlaceOfTheAreaIsNotWritten) {
  Swapper swapper{shared_, GetParam(), name_};
  const pid_t pid = start([&] {
    share_memory(swap_area, &swapper);
    shared_->ready = 1;
    for (;;) ::pause();
  });
  const std::string maps = maps_of(pid);
  {
    StoppedTree tree(Pid(pid), {.descendants = false}, *log_);
    const auto swap = [&](const std::string& stage) {
      if (stage != "mapped") return;
      const RemoteRange area = area_of(pid);
      ASSERT_NE(area.bytes(), 0u);
      shared_->progress = area.start.get();
      shared_->now = static_cast<uint32_t>(area.bytes());
      ASSERT_TRUE(eventually([&] { return shared_->done != 0; }));
    };
    EXPECT_THROW(harvest(tree.root(), {}, *log_, swap), Error);
  }
  EXPECT_EQ(shared_->done, 1u);
  EXPECT_TRUE(file_is_untouched());
  EXPECT_EQ(maps_of(pid), maps);
  EXPECT_TRUE(eventually([&] { return ProcDir(pid).stat().state == 'S'; }));
}

INSTANTIATE_TEST_SUITE_P(Baits, SwapTest, testing::Values(Bait::file, Bait::memfd, Bait::cut_memfd));

TEST_F(VisitTrustTest, LiesInTheAreaGiveNoPrivilege) {
  constexpr uint32_t kBits = 1 << 6;  // SECBIT_NO_CAP_AMBIENT_RAISE
  const pid_t pid = start([&] {
    ::prctl(PR_SET_SECUREBITS, kBits);
    count();
  });
  for (const int lie : {0, 0xff, 0x41}) {
    StoppedTree tree(Pid(pid), {}, *log_);
    const auto tell_lies = [&](const std::string& stage) {
      if (stage != "parasite done") return;
      constexpr size_t kFrom = offsetof(parasite::Area, first_error) + 8;
      const std::vector<std::byte> bytes(sizeof(parasite::Area) - kFrom, static_cast<std::byte>(lie));
      const Fd mem = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDWR);
      pwrite_full(mem.get(), bytes, area_of(pid).start.get() + kFrom, "the area");
    };
    try {
      const TaskHarvest told = harvest(tree.root(), {}, *log_, tell_lies);
      EXPECT_EQ(told.threads.front().securebits, kBits);
    } catch (const Error& e) {  // noticed
      EXPECT_NE(lie, 0) << e.what();
    }
  }
  EXPECT_TRUE(goes_on());
}

TEST_F(VisitTrustTest, AnswersThatNoKernelGivesAreNoticed) {
  constexpr int64_t kImpossible = int64_t{1} << 40;
  const pid_t pid = start([&] { count(); });
  for (const size_t at : {offsetof(parasite::Area, boottime), offsetof(parasite::Area, itimers),
                          offsetof(parasite::Area, brk), offsetof(parasite::Area, dumpable)}) {
    StoppedTree tree(Pid(pid), {}, *log_);
    EXPECT_NO_THROW(harvest(tree.root(), {}, *log_)) << "an honest one";
    const auto tell_a_lie = [&](const std::string& stage) {
      if (stage != "parasite done") return;
      const Fd mem = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDWR);
      const int64_t lie = at == offsetof(parasite::Area, brk) ? -kImpossible : kImpossible;
      pwrite_full(mem.get(), std::as_bytes(std::span(&lie, 1)), area_of(pid).start.get() + at, "the area");
    };
    EXPECT_THROW(harvest(tree.root(), {}, *log_, tell_a_lie), Corrupt) << at;
  }
  EXPECT_TRUE(goes_on());
}

int do_nothing(void* shared) {
  while (static_cast<TrustShared*>(shared)->quit == 0) ::sched_yield();
  return 0;
}

TEST_F(VisitTrustTest, ATaskThatCameAfterThePreflightAndSharesMemoryIsNoticed) {
  const pid_t pid = start([&] {
    ::setsid();
    ::close_range(0, ~0u, 0);
    share_memory(do_nothing, shared_);
    count();
  });
  DumpOptions options;
  options.root = Pid(pid);
  try {
    const Dump dump(options, *log_);
    ADD_FAILURE() << "not refused";
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("task " + std::to_string(shared_->helper) + ", outside the tree, shares"),
              std::string::npos)
        << e.what();
  }
  DirtyTracker tracker({.root = Pid(pid)}, *log_);
  EXPECT_THROW(tracker.next_round(), Refusal);
  EXPECT_TRUE(goes_on());
}

/// Its leader ends; only a thread goes on sharing.
int leave_a_thread(void* argument) {
  static char stack[64 << 10];
  ::clone(do_nothing, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, argument);
  ::syscall(SYS_exit, 0);
  return 0;
}

TEST_F(VisitTrustTest, AThreadThatSharesMemoryBehindADeadLeaderIsNoticed) {
  const pid_t pid = start([&] {
    ::setsid();
    ::close_range(0, ~0u, 0);
    share_memory(leave_a_thread, shared_);
    while (ProcDir(shared_->helper).stat().state != 'Z') ::usleep(100);
    count();
  });
  DumpOptions options;
  options.root = Pid(pid);
  EXPECT_THROW(Dump::preflight(options, *log_), Refusal);
  EXPECT_THROW(Dump(options, *log_), Refusal);
  EXPECT_TRUE(goes_on());
}

TEST_F(VisitTrustTest, FilesAreLookedAtBeforeTheyAreOpened) {
  const std::string fifo = std::string(name_) + ".fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_FALSE(open_regular(fifo, O_RDONLY)) << "and does not wait for a writer";
  EXPECT_FALSE(open_shm_object(AT_FDCWD, fifo, O_RDONLY, internal_shm_device(), 0));
  ::unlink(fifo.c_str());
  EXPECT_FALSE(open_regular("/dev/null", O_RDONLY));
  EXPECT_FALSE(open_shm_object(AT_FDCWD, name_, O_RDONLY, internal_shm_device(), 0));
  EXPECT_TRUE(open_regular(name_, O_RDONLY));
  const Fd memfd(::memfd_create("ours", MFD_CLOEXEC));
  struct stat st {};
  ASSERT_EQ(::fstat(memfd.get(), &st), 0);
  const std::string link = fd_link(memfd.get());
  EXPECT_TRUE(open_shm_object(AT_FDCWD, link, O_RDONLY, internal_shm_device(), st.st_ino));
  EXPECT_FALSE(open_shm_object(AT_FDCWD, link, O_RDONLY, internal_shm_device(), st.st_ino + 1));
}

}  // namespace
}  // namespace migrate
