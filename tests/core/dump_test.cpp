// Dumping small trees: they run on, and the images tell what /proc told.
#include "core/dump/dump.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <new>
#include <thread>

#include "core/base/deadline.h"
#include "core/dump/preflight.h"
#include "core/image/magic.h"
#include "core/memory/page_files.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"
#include "images/fdinfo.pb.h"
#include "images/inventory.pb.h"
#include "images/mm.pb.h"
#include "images/pstree.pb.h"
#include "images/stats.pb.h"
#include "images/timens.pb.h"

namespace migrate {
namespace {

/// A child in a session of its own that appends a byte to a file when it is ready, and one for each SIGRTMIN. It has
/// nothing else open: pipes that lead out of the tree are refused.
class Child {
 public:
  explicit Child(const std::function<void()>& prepare) {
    file_ = Fd(check(::mkostemp(name_, O_APPEND), "make", name_));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::setsid();
      run(prepare);
      ::_exit(1);
    }
    EXPECT_TRUE(wait_for_bytes(1));
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::unlink(name_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  pid_t pid() const { return pid_; }
  bool answers() {
    ::kill(pid_, SIGRTMIN);
    return wait_for_bytes(expected_ + 1);
  }

 private:
  void run(const std::function<void()>& prepare) {
    ::dup2(file_.get(), 0);
    ::close_range(1, ~0u, 0);
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGRTMIN);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    prepare();
    for (int signal = 0; ::write(0, "x", 1) == 1;) ::sigwait(&set, &signal);
  }
  bool wait_for_bytes(off_t bytes) {
    expected_ = bytes;
    const Deadline deadline = Deadline::in(std::chrono::seconds(10));
    struct stat st {};
    do {
      if (::fstat(file_.get(), &st) == 0 && st.st_size == bytes) return true;
      ::usleep(1000);
    } while (!deadline.passed());
    return false;
  }

  char name_[32] = "/tmp/dump_child.XXXXXX";
  Fd file_;
  pid_t pid_ = 0;
  off_t expected_ = 0;
};

class TempFolder {
 public:
  TempFolder() {
    if (::mkdtemp(path_) == nullptr) throw Error("make", path_, errno);
    dir_ = open_path(path_, O_RDONLY | O_DIRECTORY);
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  int fd() const { return dir_.get(); }
  std::string path() const { return path_; }

 private:
  char path_[32] = "/tmp/dump_test.XXXXXX";
  Fd dir_;
};

DumpOptions options_for(const Child& child) {
  DumpOptions options;
  options.root = Pid(child.pid());
  return options;
}

img::core_entry core_of(Dump& dump, pid_t tid) {
  img::core_entry core;
  dump.images().need(image_name("core", static_cast<uint64_t>(tid)), magic::kCore, core);
  return core;
}

TEST(Dump, LeavesASimpleTaskRunning) {
  const LoggerPtr log = null_logger();
  Child child([] {});
  for (int i = 0; i < 3; ++i) {
    {
      Dump dump(options_for(child), *log);
      EXPECT_GT(dump.memories().front().pages(), 0u);
    }
    EXPECT_TRUE(child.answers());
  }
}

/// What a program that waits in several ways has told of itself; deadlines by CLOCK_MONOTONIC, ns.
struct Waiting {
  std::atomic<pid_t> thread{0}, child{0};
  std::atomic<int64_t> poll{0}, timerfd{0}, own_timer{0}, timer_of_child{0};
};

int64_t in_seconds(int64_t seconds) { return monotonic_ns() + seconds * 1'000'000'000; }

void wait_in_all_ways(Waiting& told) {
  std::thread([&told] {
    told.thread = ::gettid();
    told.poll = in_seconds(1000);
    ::poll(nullptr, 0, 1'000'000);
  }).detach();
  const itimerspec timer{{}, {1000, 0}};
  const itimerval old_timer{{}, {1000, 0}};
  const int fd = ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  told.timerfd = in_seconds(1000);
  ::timerfd_settime(fd, 0, &timer, nullptr);
  told.own_timer = in_seconds(1000);
  ::setitimer(ITIMER_REAL, &old_timer, nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    told.timer_of_child = in_seconds(1000);
    ::setitimer(ITIMER_REAL, &old_timer, nullptr);
    told.child = ::getpid();
    for (;;) ::pause();
  }
  while (told.child == 0 || told.poll == 0) ::usleep(1000);
  ::usleep(300'000);  // so long they wait already
}

// The images have one clock, from which restore counts what has passed. What was read later than that has less left:
// such timers would expire early.
TEST(Dump, WhatIsLeftOfTimesIsToldAsOfTheImagesClock) {
  void* area = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto& told = *new (area) Waiting;
  const LoggerPtr log = null_logger();
  Child child([&] { wait_in_all_ways(told); });
  DumpOptions options = options_for(child);
  // Reading it takes its time.
  options.visit_hook = [calls = 0](const char*) mutable {
    if (calls++ % 4 == 0) ::usleep(50'000);
  };
  Dump dump(options, *log);
  img::timens_entry clocks;
  dump.images().need("timens-9.img", magic::kTimens, clocks);
  constexpr int64_t kSecond = 1'000'000'000;
  const auto then =
      static_cast<int64_t>(clocks.monotonic().tv_sec()) * kSecond + static_cast<int64_t>(clocks.monotonic().tv_nsec());
  const auto expect_ends = [&](const char* what, uint64_t sec, uint64_t nsec, int64_t deadline) {
    const int64_t late = then + static_cast<int64_t>(sec) * kSecond + static_cast<int64_t>(nsec) - deadline;
    EXPECT_GT(late, -2'000'000) << what << " would end early, by ns";
    EXPECT_LT(late, 20 * kSecond) << what << " would end late, by ns";
  };
  const img::core_entry sleeper = core_of(dump, told.thread);
  const uint64_t left_ms = sleeper.thread_info().gpregs().dx();
  EXPECT_LT(left_ms, 1'000'000u - 200) << "that it waits is not known";
  expect_ends("poll", left_ms / 1000, left_ms % 1000 * 1'000'000, told.poll);
  const img::itimer_entry own = core_of(dump, child.pid()).tc().timers().real();
  expect_ends("a timer of the root", own.vsec(), own.vusec() * 1000, told.own_timer);
  const img::itimer_entry of_child = core_of(dump, told.child).tc().timers().real();
  expect_ends("a timer of its child", of_child.vsec(), of_child.vusec() * 1000, told.timer_of_child);
  auto files = dump.images().read("files.img", magic::kFiles);
  bool found = false;
  for (img::file_entry file; files && files->next(file);) {
    if (!file.has_tfd()) continue;
    found = true;
    expect_ends("a timerfd", file.tfd().vsec(), file.tfd().vnsec(), told.timerfd);
  }
  EXPECT_TRUE(found);
  ::munmap(area, kPageSize);
}

TEST(Dump, ImagesTellWhatProcTells) {
  const LoggerPtr log = null_logger();
  Child child([] {
    ::prctl(PR_SET_NAME, "na (me");
    ::umask(0123);
    ::signal(SIGUSR1, SIG_IGN);
    itimerval timer{{0, 0}, {1000, 0}};
    ::setitimer(ITIMER_REAL, &timer, nullptr);
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGUSR2);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    ::raise(SIGUSR2);
    ::setpriority(PRIO_PROCESS, 0, 3);
  });
  Dump dump(options_for(child), *log);
  const img::core_entry core = core_of(dump, child.pid());
  EXPECT_EQ(core.tc().task_state(), 1u);
  EXPECT_EQ(core.tc().comm(), "na (me");
  EXPECT_EQ(core.tc().sigactions_size(), 62);
  EXPECT_EQ(core.tc().sigactions(8).sigaction(), 1u);  // SIGUSR1 is 10; KILL is left out
  EXPECT_EQ(core.tc().rlimits().rlimits_size(), 16);
  EXPECT_NEAR(static_cast<double>(core.tc().timers().real().vsec()), 999, 60) << "what is left";
  EXPECT_EQ(core.thread_core().sched_nice(), 3);
  EXPECT_EQ(core.thread_core().blk_sigset(), uint64_t{1} << (SIGUSR2 - 1) | uint64_t{1} << (SIGRTMIN - 1));
  EXPECT_EQ(core.thread_core().signals_p().signals_size() + core.tc().signals_s().signals_size(), 1);
  EXPECT_NE(core.thread_core().rseq_entry().rseq_abi_pointer(), 0u);
  EXPECT_EQ(core.thread_core().creds().uid(), ::getuid());
  EXPECT_EQ(core.thread_core().creds().cap_bnd_size(), 2);

  img::mm_entry mm;
  dump.images().need(image_name("mm", static_cast<uint64_t>(child.pid())), magic::kMm, mm);
  EXPECT_GT(mm.vmas_size(), 10);
  EXPECT_GT(mm.mm_saved_auxv_size(), 20);
  uint32_t seen = 0;
  for (const img::vma_entry& vma : mm.vmas()) seen |= vma.status();
  for (const int bit : {0, 1, 2, 3, 5, 6, 9, 12}) EXPECT_NE(seen & 1u << bit, 0u) << bit;

  img::inventory_entry inventory;
  dump.images().need("inventory.img", magic::kInventory, inventory);
  EXPECT_EQ(inventory.img_version(), 2u);
  EXPECT_TRUE(dump.images().has("cgroup.img"));
  EXPECT_TRUE(dump.images().has(image_name("fs", static_cast<uint64_t>(child.pid()))));
  EXPECT_TRUE(dump.images().has(image_name("ids", static_cast<uint64_t>(child.pid()))));
}

TEST(Dump, FindsTheChildAndTheZombie) {
  const LoggerPtr log = null_logger();
  Child child([] {
    if (::fork() == 0)
      for (;;) ::pause();
    const pid_t dead = ::fork();
    if (dead == 0) ::_exit(7);
    siginfo_t info;
    ::waitid(P_PID, static_cast<id_t>(dead), &info, WEXITED | WNOWAIT);
  });
  Dump dump(options_for(child), *log);
  auto reader = dump.images().read("pstree.img", magic::kPstree);
  ASSERT_TRUE(reader);
  std::vector<img::pstree_entry> tasks;
  for (img::pstree_entry e; reader->next(e);) tasks.push_back(e);
  ASSERT_EQ(tasks.size(), 3u);
  EXPECT_EQ(tasks[0].ppid(), 0u);
  EXPECT_EQ(tasks[0].sid(), static_cast<uint32_t>(child.pid()));
  std::map<uint32_t, int> states;
  for (const auto& task : tasks) {
    const img::core_entry core = core_of(dump, static_cast<pid_t>(task.pid()));
    ++states[core.tc().task_state()];
    if (core.tc().task_state() == 6) {
      EXPECT_EQ(core.tc().exit_code(), 7u << 8);
    }
    if (&task != &tasks[0]) {
      EXPECT_EQ(task.ppid(), tasks[0].pid());
    }
  }
  EXPECT_EQ(states, (std::map<uint32_t, int>{{1, 2}, {6, 1}}));
  ::kill(static_cast<pid_t>(tasks[1].pid()), SIGKILL);
  ::kill(static_cast<pid_t>(tasks[2].pid()), SIGKILL);
}

TEST(Dump, SharedAnonymousMemoryIsOneObject) {
  const LoggerPtr log = null_logger();
  Child child([] {
    auto* shared =
        static_cast<char*>(::mmap(nullptr, 8 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    shared[2 * kPageSize] = 's';
    if (::fork() == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
  });
  Dump dump(options_for(child), *log);
  size_t objects = 0;
  for (const PageSource& source : dump.memories()) {
    if (source.memory.kind != MemoryId::Kind::shmem) continue;
    ++objects;
    EXPECT_EQ(source.pages(), 1u);
    std::array<std::byte, 1> byte{};
    EXPECT_EQ(pread_full(source.fd.get(), byte, 2 * kPageSize, "object"), 1u);
    EXPECT_EQ(byte[0], std::byte{'s'});
  }
  EXPECT_EQ(objects, 1u);
}

/// Who the leader of our own session is depends on how the tests were started: a task between us leads the child's.
TEST(Dump, RefusesASessionFromOutside) {
  pid_t* member =
      static_cast<pid_t*>(::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(member), MAP_FAILED);
  {
    const Child leader([&] {
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) ::pause();
      }
      *member = pid;
    });
    const std::vector<ProcDir> outside = collect_tree(Pid(*member));
    EXPECT_THROW(check_sessions(outside), Refusal);
    EXPECT_NO_THROW(check_sessions(collect_tree(Pid(leader.pid()))));
  }
  ::munmap(member, kPageSize);
}

TEST(Dump, RefusesItsOwnAncestors) { EXPECT_THROW(collect_tree(Pid(::getppid())), Refusal); }

TEST(Dump, RefusesMemorySharedWithTheOutside) {
  auto* shared =
      static_cast<char*>(::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  Child child([] {});
  EXPECT_THROW(check_mappings(collect_tree(Pid(child.pid())), MappingReader()), Refusal);
  ::munmap(shared, kPageSize);
  EXPECT_NO_THROW(check_mappings(collect_tree(Pid(child.pid())), MappingReader()));
}

TEST(Dump, WritesAFolderThatCritCanRead) {
  const LoggerPtr log = null_logger();
  const TempFolder folder;
  Child child([] {});
  {
    Dump dump(options_for(child), *log);
    write_page_images(dump, folder.fd());
    dump.images().save(folder.fd());
    write_dump_stats(dump.stats(), folder.fd());
  }
  EXPECT_TRUE(child.answers());
  EXPECT_TRUE(std::filesystem::exists(folder.path() + "/stats-dump"));
  if (::access("/usr/bin/crit", X_OK) != 0) GTEST_SKIP() << "crit is missing; install Debian's criu package";
  for (const auto& file : std::filesystem::directory_iterator(folder.path())) {
    const std::string name = file.path().filename();
    if (name.starts_with("pages-") || name.starts_with("migrate-") || name.starts_with("timens-")) continue;
    const std::string command = "crit decode -i " + file.path().string() + " > /dev/null";
    EXPECT_EQ(std::system(command.c_str()), 0) << name;
  }
}

}  // namespace
}  // namespace migrate
