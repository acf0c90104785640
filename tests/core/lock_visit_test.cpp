// Locks that a task gives up and takes again: strangers can have them in between, and only then; who stood in a frozen
// cgroup has them back before it runs.
#include "core/inject/lock_visit.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "core/base/procfs.h"
#include "core/files/file_locks.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/freeze/freezer_cgroup.h"
#include "tests/core/forked_programs.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

/// Of the file `path`, as somebody who does not have them sees them.
bool locked(const std::string& path, uint32_t kind) {
  const Fd fd = open_path(path, O_RDWR);
  if (kind == kLockFlock) return ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_start = kind == kLockPosix ? 0 : 1000;
  range.l_len = 100;
  return ::fcntl(fd.get(), F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
}

constexpr uint32_t kKinds[] = {kLockPosix, kLockFlock, kLockDescription};

/// A program with a lock of each kind and two threads, which counts how often it ran without the POSIX one.
class LockVisitTest : public testing::Test {
 protected:
  LockVisitTest() {
    path_ = folder_.path() + "/locked";
    shared_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      take_all();
      std::thread([&] {
        for (;; ++shared_->progress[1]) ::usleep(300);
      }).detach();
      const Fd own = open_path(path_, O_RDWR);
      for (;; ++shared_->progress[0]) {
        // A description of its own sees the POSIX lock of its process.
        struct flock range {};
        range.l_type = F_WRLCK;
        range.l_len = 100;
        if (::fcntl(own.get(), F_OFD_GETLK, &range) != 0 || range.l_type == F_UNLCK) ++shared_->without;
        ::usleep(100);
      }
    }
    EXPECT_TRUE(goes_on());
  }
  ~LockVisitTest() override {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(shared_, sizeof(Shared));
  }

  bool goes_on() {
    const uint64_t a = shared_->progress[0], b = shared_->progress[1];
    return eventually([&] { return shared_->progress[0] > a + 10 && shared_->progress[1] > b + 2; });
  }
  bool has(uint32_t kind) const { return locked(path_, kind); }
  bool has_all() const {
    return std::ranges::all_of(kKinds, [this](uint32_t kind) { return has(kind); });
  }
  bool has_none() const {
    return std::ranges::none_of(kKinds, [this](uint32_t kind) { return has(kind); });
  }

  std::vector<HeldLock> locks() const {
    std::vector<HeldLock> found;
    const ProcDir proc(pid_);
    for (const int fd : proc.descriptors()) {
      const std::string link = proc.link("fd/" + std::to_string(fd));
      if (link != path_) continue;
      struct stat st {};
      ::stat(path_.c_str(), &st);
      for (const FileLock& lock : parse_file_locks(parse_fdinfo(proc.read("fdinfo/" + std::to_string(fd)))))
        found.push_back({static_cast<uint32_t>(found.size()), Pid(pid_), fd, lock, st.st_dev, st.st_ino, path_});
    }
    return found;
  }
  std::vector<Pid> tasks() const { return {Pid(pid_)}; }
  void give_up() {
    StoppedTree stopped(Pid(pid_), {.descendants = false}, *log_);
    give_up_locks(stopped.tasks(), held_, *log_);
  }

  struct Shared {
    std::atomic<uint64_t> progress[2]{};
    std::atomic<uint64_t> without{0};  ///< rounds in which it had no POSIX lock
  };
  TempDir folder_;
  std::string path_;
  Shared* shared_ = nullptr;
  pid_t pid_ = 0;
  LoggerPtr log_ = null_logger();
  std::vector<HeldLock> held_;

 private:
  void take_all() const {
    const int a = ::open(path_.c_str(), O_RDWR | O_CREAT, 0600), b = ::open(path_.c_str(), O_RDWR);
    struct flock range {};
    range.l_type = F_WRLCK;
    range.l_len = 100;
    ::fcntl(a, F_SETLK, &range);
    range.l_start = 1000;
    ::fcntl(b, F_OFD_SETLK, &range);
    ::flock(b, LOCK_EX);
  }
};

TEST_F(LockVisitTest, AreGivenUpAndTakenAgainInOneStop) {
  held_ = locks();
  ASSERT_EQ(held_.size(), 3u);
  const std::string maps = ProcDir(pid_).read("maps");
  {
    StoppedTree stopped(Pid(pid_), {.descendants = false}, *log_);
    give_up_locks(stopped.tasks(), held_, *log_);
    EXPECT_TRUE(has_none());
    EXPECT_EQ(take_locks(stopped.tasks(), held_, *log_), std::vector<std::string>());
    EXPECT_TRUE(has_all());
  }
  EXPECT_TRUE(goes_on());
  EXPECT_TRUE(has_all());
  EXPECT_EQ(ProcDir(pid_).read("maps"), maps);
}

TEST_F(LockVisitTest, WhatSomebodyElseHasIsTold) {
  held_ = locks();
  give_up();
  const Fd other = open_path(path_, O_RDWR);
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  const std::vector<std::string> lost = run_on_with_locks(
      held_, tasks(), [] {}, *log_);
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost.front(), "task " + std::to_string(pid_) + " runs on without its flock(2) lock on " + path_ +
                              ": another process has it");
  EXPECT_TRUE(has(kLockPosix));
  EXPECT_TRUE(has(kLockDescription));
  EXPECT_TRUE(goes_on());
}

TEST_F(LockVisitTest, OfOneThatHasEndedNothingIsMissed) {
  held_ = locks();
  give_up();
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, WNOWAIT);
  bool thawed = false;
  EXPECT_EQ(run_on_with_locks(
                held_, tasks(), [&] { thawed = true; }, *log_),
            std::vector<std::string>());
  EXPECT_TRUE(thawed);
}

TEST_F(LockVisitTest, AFrozenOneHasThemBeforeItRuns) {
  for (const CgroupVersion version : {CgroupVersion::v1, CgroupVersion::v2}) {
    if (!find_cgroup_mount(read_file_at(AT_FDCWD, "/proc/self/mountinfo"), version == CgroupVersion::v2)) continue;
    held_ = locks();
    ASSERT_EQ(held_.size(), 3u);
    std::optional<FreezerCgroup> frozen;
    {
      StoppedTree stopped(Pid(pid_), {.descendants = false}, *log_);
      give_up_locks(stopped.tasks(), held_, *log_);
      frozen.emplace(FreezerCgroup::hold({Pid(pid_)}, "migrate-test-locks-" + std::to_string(pid_), version));
      frozen->freeze(std::chrono::seconds(5));
    }
    EXPECT_TRUE(has_none());
    const uint64_t before = shared_->progress[0];
    uint64_t at_thaw = before + 1;
    const auto thaw = [&] {
      at_thaw = shared_->progress[0];
      frozen->dissolve();
    };
    EXPECT_EQ(run_on_with_locks(held_, tasks(), thaw, *log_), std::vector<std::string>());
    EXPECT_EQ(at_thaw, before);
    EXPECT_TRUE(has_all());
    EXPECT_TRUE(goes_on());
    EXPECT_EQ(shared_->without, 0u);
  }
}

TEST_F(LockVisitTest, AFailingThawIsToldAndTriedAgain) {
  held_ = locks();
  give_up();
  int calls = 0;
  const auto fails = [&] {
    ++calls;
    throw Error("thaw", "the test", EIO);
  };
  EXPECT_THROW(run_on_with_locks(held_, tasks(), fails, *log_), Error);
  EXPECT_GE(calls, 2);
  EXPECT_TRUE(goes_on());
}

TEST_F(LockVisitTest, OnAnotherFileNothingIsTaken) {
  held_ = locks();
  give_up();
  for (HeldLock& lock : held_) ++lock.inode;
  EXPECT_EQ(run_on_with_locks(
                held_, tasks(), [] {}, *log_)
                .size(),
            held_.size());
  EXPECT_TRUE(has_none());
}

TEST_F(LockVisitTest, WhoWaitsForOneIsFound) {
  held_ = locks();
  const auto why = [&](const std::vector<Pid>& tasks) -> std::string {
    try {
      refuse_waiters_outside(held_, tasks);
      return "";
    } catch (const Refusal& e) {
      return e.what();
    }
  };
  EXPECT_EQ(why({Pid(pid_)}), "");
  const pid_t waiter = ::fork();
  if (waiter == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int fd = ::open(path_.c_str(), O_RDWR);
    ::flock(fd, LOCK_EX);
    ::_exit(0);
  }
  EXPECT_TRUE(eventually([&] { return !why({Pid(pid_)}).empty(); }));
  const std::string sentence = "process " + std::to_string(waiter) + " waits for the lock of task " +
                               std::to_string(pid_) + " on " + path_ + ", and would get it";
  EXPECT_EQ(why({Pid(pid_)}).substr(0, sentence.size()), sentence);
  EXPECT_EQ(why({Pid(pid_), Pid(waiter)}), "");
  ::kill(waiter, SIGKILL);
  ::waitpid(waiter, nullptr, 0);
}

}  // namespace
}  // namespace migrate
