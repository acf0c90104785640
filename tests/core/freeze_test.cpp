// Stopping trees, and holding them in freezer cgroups.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "core/freeze/cgroup_mounts.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/freeze/stopped_tree.h"
#include "core/freeze/tracee.h"
#include "tests/core/forked_programs.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

struct Shared {
  std::atomic<uint32_t> ready{0};
  std::atomic<uint64_t> progress[8]{};
  std::atomic<uint32_t> damage{0};
  std::atomic<uint32_t> caught{0};
};

class FreezeTest : public testing::Test {
 protected:
  FreezeTest() {
    s_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
    // What the trees leave becomes ours, so that no test leaves a process behind.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  }
  ~FreezeTest() override {
    for (int tries = 0; tries < 1000; ++tries) {
      for (const pid_t pid : ProcDir(::getpid()).children()) ::kill(pid, SIGKILL);
      if (::waitpid(-1, nullptr, __WALL) < 0) break;
    }
    ::munmap(s_, sizeof(Shared));
  }
  pid_t start(const std::function<void()>& body) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    ::_exit(0);
  }
  bool goes_on(int slot) {
    const uint64_t seen = s_->progress[slot];
    return eventually([&] { return s_->progress[slot] > seen + 10; });
  }
  bool stands_still(int slot) {
    const uint64_t seen = s_->progress[slot];
    ::usleep(20'000);
    return s_->progress[slot] == seen;
  }
  void count(int slot) {
    s_->ready++;
    for (;;) s_->progress[slot]++;
  }
  bool wait_ready(uint32_t n) {
    return eventually([&] { return s_->ready >= n; });
  }

  Shared* s_;
  LoggerPtr log_ = null_logger();
};

constexpr const char* kExecutes = "MIGRATE_TEST_EXECUTES";

/// In a test program that was started with kExecutes: three threads, of which one that is not the leader executes the
/// same again, for ever. Before main(), and before anything that takes time.
[[gnu::constructor]] void execute_for_ever() {
  if (::getenv(kExecutes) == nullptr) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::thread([] {
    for (;;) ::pause();
  }).detach();
  std::thread([] {
    ::usleep(500);
    ::execl("/proc/self/exe", "executes", nullptr);
    ::_exit(1);
  }).detach();
  for (;;) ::pause();
}

char state_of(pid_t pid) { return ProcDir(pid).stat().state; }

/// With so few descriptors that they run out at any moment: all of the tree, or an error, and never a part of it.
TEST_F(FreezeTest, WithoutDescriptorsNoTaskIsTakenForDead) {
  const pid_t pid = start([&] {
    for (int i = 0; i < 2; ++i)
      if (::fork() == 0) {
        std::thread([&] { count(0); }).detach();
        count(1);
      }
    count(2);
  });
  ASSERT_TRUE(wait_ready(5));
  int stopped = 0;
  for (rlim_t most = 1; most < 64 && stopped < 3; ++most) {
    const pid_t tracer = ::fork();
    if (tracer == 0) {
      ::close_range(3, ~0U, 0);
      const rlimit limit{most, 64};
      ::setrlimit(RLIMIT_NOFILE, &limit);
      try {
        const StoppedTree tree(Pid(pid), {}, *log_);
        size_t threads = 0;
        for (const StoppedTask& task : tree.tasks())
          if (task.state == TaskState::running) threads += task.threads.size();
        ::_exit(tree.tasks().size() == 3 && threads == 5 ? 0 : 2);
      } catch (const Error& e) {
        ::_exit(e.code() == EMFILE ? 1 : 3);
      }
    }
    int status = 0;
    ::waitpid(tracer, &status, 0);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) < 2) << most << " descriptors: " << status;
    stopped += WEXITSTATUS(status) == 0 ? 1 : 0;
  }
  EXPECT_EQ(stopped, 3);
  for (int slot = 0; slot < 3; ++slot) EXPECT_TRUE(goes_on(slot));
}

TEST_F(FreezeTest, TreeWithThreadsChildrenAndAZombie) {
  const pid_t pid = start([&] {
    if (::fork() == 0) ::_exit(3);
    if (::fork() == 0) {
      if (::fork() == 0) count(1);
      count(2);
    }
    std::thread([&] { count(3); }).detach();
    count(0);
  });
  ASSERT_TRUE(wait_ready(4));
  {
    StoppedTree tree(Pid(pid), {}, *log_);
    ASSERT_EQ(tree.tasks().size(), 4u);
    EXPECT_EQ(tree.root().pid.get(), pid);
    EXPECT_EQ(tree.root().threads.size(), 2u);
    EXPECT_EQ(tree.root().threads[0].tid.get(), pid);
    EXPECT_GE(tree.root().threads[0].xsave.size(), 576u);
    int zombies = 0;
    for (const StoppedTask& task : tree.tasks()) {
      if (task.state != TaskState::zombie) continue;
      ++zombies;
      EXPECT_EQ(task.exit_code, 3 << 8);
      EXPECT_EQ(task.parent.get(), pid);
    }
    EXPECT_EQ(zombies, 1);
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(stands_still(i));
  }
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(goes_on(i));
}

TEST_F(FreezeTest, ForkingTreeIsCaughtWhole) {
  // Each generation forks the next and ends after a moment: a race with the listing of children.
  const pid_t pid = start([&] {
    s_->ready++;
    for (;;) {
      if (::fork() == 0) {
        if (::fork() == 0) ::_exit(0);
        ::usleep(300);
        ::wait(nullptr);
        ::_exit(0);
      }
      s_->progress[0]++;
      while (::waitpid(-1, nullptr, WNOHANG) > 0) {
      }
      ::usleep(50);
    }
  });
  ASSERT_TRUE(wait_ready(1));
  for (int i = 0; i < 30; ++i) {
    StoppedTree tree(Pid(pid), {}, *log_);
    std::set<pid_t> known;
    for (const StoppedTask& task : tree.tasks()) known.insert(task.pid.get());
    for (const StoppedTask& task : tree.tasks()) {
      if (task.state == TaskState::zombie) continue;
      EXPECT_EQ(ProcDir(task.pid.get()).stat().state, 't');
      for (const pid_t child : task.proc.children()) EXPECT_TRUE(known.contains(child));
    }
  }
  EXPECT_TRUE(goes_on(0));
}

// The parent of a vfork(2) does not stop before its child has gone on.
TEST_F(FreezeTest, ParentsInVforkAreCaught) {
  constexpr int kParents = 4;
  const pid_t pid = start([&] {
    for (int slot = 0; slot < kParents; ++slot) {
      if (::fork() != 0) continue;
      s_->ready++;
      for (;;) {
        const long child = ::syscall(SYS_clone, CLONE_VFORK | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
        if (child == 0) {
          ::usleep(300);  // not a wait: for so long its parent cannot stop, which is what is tried
          ::_exit(0);
        }
        ::waitpid(-1, nullptr, 0);
        s_->progress[slot]++;
      }
    }
    for (;;) ::pause();
  });
  ASSERT_TRUE(wait_ready(kParents));
  for (int i = 0; i < 100; ++i) {
    StoppedTree tree(Pid(pid), {}, *log_);
    ASSERT_GE(tree.tasks().size(), kParents + 1u);
    for (const StoppedTask& task : tree.tasks()) {
      if (task.state != TaskState::zombie) {
        EXPECT_EQ(state_of(task.pid.get()), 't');
      }
    }
  }
  for (int slot = 0; slot < kParents; ++slot) EXPECT_TRUE(goes_on(slot));
}

// The thread that executes a program takes the number of the leader, whatever had been seized or had stopped before.
TEST_F(FreezeTest, ThreadThatExecutesIsCaught) {
  const pid_t pid = start([&] {
    ::setenv(kExecutes, "1", 1);
    ::execl("/proc/self/exe", "executes", nullptr);
  });
  ASSERT_TRUE(eventually([&] { return ProcDir(pid).read("cmdline").starts_with("executes"); }));
  for (int i = 0; i < 300; ++i) {
    {
      StoppedTree tree(Pid(pid), {}, *log_);
      ASSERT_EQ(tree.tasks().size(), 1u);
      ASSERT_GE(tree.root().threads.size(), 1u);
      EXPECT_EQ(tree.root().threads.front().tid.get(), pid);
      for (const StoppedThread& thread : tree.root().threads)
        EXPECT_EQ(tree.root().proc.thread(thread.tid.get()).stat().state, 't');
    }
    ::usleep(static_cast<useconds_t>(i * 37 % 2000));
  }
  EXPECT_EQ(::waitpid(pid, nullptr, WNOHANG), 0) << "it runs on";
}

TEST_F(FreezeTest, MainThreadThatHasEndedIsRefused) {
  const pid_t pid = start([&] {
    std::thread([&] { count(0); }).detach();
    ::syscall(SYS_exit, 0);
  });
  ASSERT_TRUE(wait_ready(1));
  ASSERT_TRUE(eventually([&] { return state_of(pid) == 'Z'; }));
  try {
    StoppedTree tree(Pid(pid), {}, *log_);
    ADD_FAILURE() << "it was stopped";
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("has ended its main thread"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(goes_on(0));
}

TEST_F(FreezeTest, SignalsAreNotLost) {
  const pid_t pid = start([&] {
    static Shared* shared = s_;
    ::signal(SIGUSR1, [](int) { shared->caught++; });
    count(0);
  });
  ASSERT_TRUE(wait_ready(1));
  for (uint32_t i = 1; i <= 300; ++i) {
    ::kill(pid, SIGUSR1);
    { StoppedTree tree(Pid(pid), {}, *log_); }
    ASSERT_TRUE(eventually([&] { return s_->caught == i; })) << "signal " << i;
  }
}

TEST_F(FreezeTest, EpollWaitWithoutTimeLimitIsNotDisturbed) {
  const pid_t pid = start([&] {
    const int epoll = ::epoll_create1(0);
    epoll_event event;
    s_->ready++;
    if (::epoll_wait(epoll, &event, 1, -1) < 0) s_->damage = 1;
  });
  ASSERT_TRUE(wait_ready(1));
  ASSERT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  for (int i = 0; i < 5; ++i) {
    StoppedTree tree(Pid(pid), {}, *log_);
  }
  ASSERT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  EXPECT_EQ(s_->damage, 0u);
}

TEST_F(FreezeTest, ReleaseCanLeaveStopped) {
  const pid_t pid = start([&] { count(0); });
  ASSERT_TRUE(wait_ready(1));
  StoppedTree tree(Pid(pid), {}, *log_);
  tree.release(true);
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'T'; }));
  ::kill(pid, SIGCONT);
  EXPECT_TRUE(goes_on(0));
}

TEST_F(FreezeTest, KillLeavesNothing) {
  const pid_t pid = start([&] {
    if (::fork() == 0) count(1);
    std::thread([&] { count(2); }).detach();
    count(0);
  });
  ASSERT_TRUE(wait_ready(3));
  StoppedTree tree(Pid(pid), {}, *log_);
  tree.kill();
  EXPECT_TRUE(eventually([&] {
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    return ProcDir(::getpid()).children().empty();
  }));
}

TEST_F(FreezeTest, Refusals) {
  EXPECT_THROW(StoppedTree(Pid(::getpid()), {}, *log_), Refusal);
  EXPECT_THROW(StoppedTree(Pid(::getppid()), {}, *log_), Refusal);
  // kthreadd is 2 wherever kernel threads are visible.
  const pid_t traced = start([&] { count(0); });
  const pid_t tracer = start([&] {
    s_->progress[1] = ::ptrace(PTRACE_SEIZE, traced, nullptr, nullptr) == 0 ? 1 : 2;
    for (;;) ::pause();
  });
  ASSERT_TRUE(wait_ready(1));
  ASSERT_TRUE(eventually([&] { return s_->progress[1] != 0; }));
  EXPECT_THROW(StoppedTree(Pid(traced), {}, *log_), Refusal);
  ::kill(tracer, SIGKILL);
  ::waitpid(tracer, nullptr, 0);
  EXPECT_TRUE(goes_on(0));
}

class SharingTest : public FreezeTest, public ::testing::WithParamInterface<int> {};

TEST_P(SharingTest, OfTwoTasksIsRefused) {
  const pid_t pid = start([&] {
    auto* stack =
        static_cast<char*>(::mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    static Shared* shared = s_;
    ::clone(
        [](void*) -> int {
          for (;;) shared->progress[1]++;
        },
        stack + 65536, GetParam() | SIGCHLD, nullptr);
    count(0);
  });
  ASSERT_TRUE(wait_ready(1));
  EXPECT_THROW(StoppedTree(Pid(pid), {}, *log_), Refusal);
  EXPECT_TRUE(goes_on(0));
  EXPECT_TRUE(goes_on(1));
}

INSTANTIATE_TEST_SUITE_P(All, SharingTest, ::testing::Values(CLONE_VM, CLONE_FS, CLONE_FILES));

TEST(CgroupMounts, MountinfoAndPaths) {
  const char* text =
      "30 24 0:26 / /sys/fs/cgroup/un\\040ified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
      "31 24 0:27 /pod /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";
  EXPECT_EQ(find_cgroup_mount(text, true)->point, "/sys/fs/cgroup/un ified");
  EXPECT_EQ(find_cgroup_mount(text, false)->root, "/pod");
  EXPECT_FALSE(find_cgroup_mount("", true));
  EXPECT_EQ(find_cgroup_path("4:cpu,freezer:/a:b\n0::/c\n", false), "/a:b");
  EXPECT_EQ(find_cgroup_path("4:cpu,freezer:/a:b\n0::/c\n", true), "/c");
}

class FreezerCgroupTest : public FreezeTest, public testing::WithParamInterface<CgroupVersion> {
 protected:
  ~FreezerCgroupTest() override {
    // Also after a failure nothing may stay frozen: the base class could not end it.
    try {
      if (!planned_.folders.empty()) FreezerCgroup::adopt(planned_).dissolve();
    } catch (const Error& e) {
      ADD_FAILURE() << e.what();
    }
  }
  const std::string& name() const { return name_; }
  const std::string name_ = "migrate-test-" + std::to_string(::getpid());
  FreezerCgroup::Record planned_;
  bool mounted() const {
    return find_cgroup_mount(read_file_at(AT_FDCWD, "/proc/self/mountinfo"), GetParam() == CgroupVersion::v2)
        .has_value();
  }
};

TEST_P(FreezerCgroupTest, HoldsOverPtraceStopsAndTheTracersDeath) {
  if (!mounted()) GTEST_SKIP() << "no such hierarchy is mounted here; mount it to run this";
  const pid_t pid = start([&] {
    if (::fork() == 0) count(1);
    std::thread([&] { count(2); }).detach();
    count(0);
  });
  ASSERT_TRUE(wait_ready(3));
  const auto planned = planned_ = FreezerCgroup::plan({Pid(pid)}, name(), GetParam());
  ASSERT_EQ(planned.folders.size(), 1u);
  const pid_t tracer = ::fork();
  if (tracer == 0) {
    try {
      StoppedTree tree(Pid(pid), {}, *log_);
      std::vector<Pid> pids;
      for (const StoppedTask& task : tree.tasks()) pids.push_back(task.pid);
      FreezerCgroup::hold(pids, name(), GetParam()).freeze(milliseconds(5000));
    } catch (const Error& e) {
      std::fprintf(stderr, "%s\n", e.what());
    }
    ::kill(::getpid(), SIGKILL);
  }
  ::waitpid(tracer, nullptr, 0);
  FreezerCgroup held = FreezerCgroup::adopt(planned);
  EXPECT_TRUE(held.frozen());
  EXPECT_EQ(held.members().size(), 2u);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(stands_still(i));
  held.thaw();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(goes_on(i));
  held.freeze(milliseconds(5000));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(stands_still(i));
  held.dissolve();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(goes_on(i));
  EXPECT_NE(::access(planned.folders[0].c_str(), F_OK), 0);
}

TEST_P(FreezerCgroupTest, KillsAFrozenTreeAndRemovesItsFolder) {
  if (!mounted()) GTEST_SKIP() << "no such hierarchy is mounted here; mount it to run this";
  const pid_t pid = start([&] { count(0); });
  ASSERT_TRUE(wait_ready(1));
  FreezerCgroup held = FreezerCgroup::create(name(), GetParam());
  planned_ = held.record();
  const std::string folder = held.record().folders.at(0);
  held.add(Pid(pid));
  EXPECT_EQ(held.members(), std::vector<Pid>{Pid(pid)});
  held.freeze(milliseconds(5000));
  held.kill_all(milliseconds(5000));
  EXPECT_TRUE(held.members().empty());
  held.dissolve();
  EXPECT_NE(::access(folder.c_str(), F_OK), 0);
}

TEST_P(FreezerCgroupTest, AFolderOfThatNameIsNotTaken) {
  if (!mounted()) GTEST_SKIP() << "no such hierarchy is mounted here; mount it to run this";
  FreezerCgroup first = FreezerCgroup::create(name(), GetParam());
  EXPECT_THROW(FreezerCgroup::create(name(), GetParam()), Error);
  EXPECT_EQ(::access(first.record().folders.at(0).c_str(), F_OK), 0);
  first.dissolve();
}

INSTANTIATE_TEST_SUITE_P(Versions, FreezerCgroupTest, testing::Values(CgroupVersion::v1, CgroupVersion::v2),
                         [](const auto& version) { return version.param == CgroupVersion::v1 ? "v1" : "v2"; });

}  // namespace
}  // namespace migrate
