// States in which a thread may stand when it is visited: it goes on as if it had not been, or is refused with nothing
// changed.
#include <gtest/gtest.h>
#include <linux/landlock.h>
#include <linux/rseq.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include <array>
#include <atomic>
#include <thread>

#include "core/dump/dump.h"
#include "core/memory/dirty_tracker.h"
#include "tests/core/visits.h"

namespace migrate {
namespace {

struct StatesShared {
  std::atomic<uint32_t> ready{0};
  std::atomic<uint64_t> progress{0};
  std::atomic<uint32_t> damage{0};  ///< a program found something wrong
  std::atomic<uint64_t> aborts{0};
  std::atomic<pid_t> inner{0};         ///< a child of the program
  std::atomic<uint32_t> elsewhere{0};  ///< traps that were told at an address that is not the program's
};

class VisitStatesTest : public VisitedPrograms<StatesShared> {
 protected:
  ~VisitStatesTest() override {
    if (shared_->inner != 0) ::kill(shared_->inner, SIGKILL);
  }
  void visit(pid_t pid) {
    StoppedTree tree(Pid(pid), {}, *log_);
    harvest(tree.root(), {}, *log_);
  }
  /// Refused with this in its sentence, and as before.
  void expect_refused(pid_t pid, const std::string& what) {
    const std::string maps = maps_of(pid);
    for (int i = 0; i < 3; ++i) {
      try {
        visit(pid);
        ADD_FAILURE() << "not refused";
      } catch (const Refusal& e) {
        EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what();
      }
      EXPECT_TRUE(goes_on());
    }
    EXPECT_EQ(maps_of(pid), maps);
  }
  /// Visited well, often, and by tracers that are killed at each stage.
  void expect_unharmed(const std::function<void()>& body, int visits) {
    const pid_t pid = start(body);
    const std::string maps = maps_of(pid);
    for (int i = 0; i < visits; ++i) {
      visit(pid);
      ASSERT_TRUE(goes_on());
    }
    EXPECT_EQ(shared_->damage, 0u);
    // A signal that waits is delivered on the way back, if we are killed: a trap is told there then.
    EXPECT_EQ(shared_->elsewhere, 0u);
    for (unsigned stage = 0;; ++stage) {
      std::string name;
      const bool died = visit_and_die(pid, stage, &name);
      SCOPED_TRACE("killed at: " + name);
      ASSERT_FALSE(name.starts_with("error")) << name;
      ASSERT_TRUE(goes_on());
      ASSERT_TRUE(eventually([&] { return maps_of(pid) == maps; })) << maps_of(pid);
      if (!died) break;
    }
    EXPECT_EQ(shared_->damage, 0u);
  }
};

void dispatch_calls(char* selector) {
  constexpr int kSetDispatch = 59;  // PR_SET_SYSCALL_USER_DISPATCH
  if (::prctl(kSetDispatch, 1, 0, 0, selector) != 0) ::_exit(1);
  *selector = 1;  // SYSCALL_DISPATCH_FILTER_BLOCK
}

TEST_F(VisitStatesTest, SyscallUserDispatchIsRefused) {
  const pid_t pid = start([&] {
    static char selector = 0;
    dispatch_calls(&selector);
    count();
  });
  expect_refused(pid, "PR_SET_SYSCALL_USER_DISPATCH");
}

TEST_F(VisitStatesTest, SyscallUserDispatchOfAnotherThreadIsRefused) {
  const pid_t pid = start([&] {
    std::thread([&] {
      static char selector = 0;
      dispatch_calls(&selector);
      count();
    }).detach();
    for (;;) ::pause();
  });
  expect_refused(pid, "PR_SET_SYSCALL_USER_DISPATCH");
}

/// Two instructions in turn, each of which traps: none may be left out, none told twice.
StatesShared* g_shared = nullptr;
uint64_t g_last = 0;
extern "C" const char visit_step_a[], visit_step_b[];

void on_step(int, siginfo_t*, void* context) {
  const auto rip = static_cast<uint64_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
  const bool inside =
      rip == reinterpret_cast<uint64_t>(visit_step_a) || rip == reinterpret_cast<uint64_t>(visit_step_b);
  if (inside && rip == g_last) ++g_shared->damage;
  if (!inside && g_last != 0) ++g_shared->elsewhere;
  g_last = inside ? rip : 0;
}

[[noreturn]] void step_for_ever(StatesShared* shared) {
  g_shared = shared;
  struct sigaction action {};
  action.sa_sigaction = on_step;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGTRAP, &action, nullptr);
  shared->ready = 1;
  asm volatile(
      "pushfq\n orq $0x100, (%%rsp)\n popfq\n"
      ".globl visit_step_a, visit_step_b\n"
      "visit_step_a: lock incq (%0)\n"
      "visit_step_b: jmp visit_step_a\n" ::"r"(&shared->progress)
      : "memory", "cc");
  __builtin_unreachable();
}

TEST_F(VisitStatesTest, ASteppingThreadTrapsOnAsBefore) {
  expect_unharmed([&] { step_for_ever(shared_); }, 100);
}

/// Is inside a critical section nearly always, and looks there whether the kernel still knows. `aborts` counts.
[[noreturn]] void stay_in_section(StatesShared* shared) {
  shared->ready = 1;
  char* const area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  asm volatile(
      ".pushsection .data\n .balign 32\n 9: .long 0, 0\n .quad 2f, 3f - 2f, 4f\n .popsection\n"
      "1: leaq 9b(%%rip), %%rax\n movq %%rax, 8(%[area])\n"
      "2: pause\n lock incq (%[count])\n cmpq $0, 8(%[area])\n je 5f\n jmp 2b\n"
      "3: nop\n jmp 1b\n"
      ".long 0x53053053\n"
      "4: lock incq (%[aborts])\n jmp 1b\n"
      "5: lock incl (%[damage])\n jmp 1b\n" ::[area] "r"(area),
      [count] "r"(&shared->progress), [aborts] "r"(&shared->aborts), [damage] "r"(&shared->damage)
      : "rax", "memory", "cc");
  __builtin_unreachable();
}

TEST_F(VisitStatesTest, ARestartableSequenceIsAborted) {
  if (__rseq_size == 0) GTEST_SKIP() << "the C library has registered no restartable sequences";
  expect_unharmed([&] { stay_in_section(shared_); }, 50);
  EXPECT_GE(shared_->aborts, 50u);
}

TEST_F(VisitStatesTest, AThreadInARestartableSequenceIsAborted) {
  if (__rseq_size == 0) GTEST_SKIP() << "the C library has registered no restartable sequences";
  const pid_t pid = start([&] {
    std::thread([&] { stay_in_section(shared_); }).detach();
    for (;;) ::pause();
  });
  for (int i = 0; i < 50; ++i) {
    visit(pid);
    ASSERT_TRUE(goes_on());
  }
  EXPECT_GE(shared_->aborts, 50u);
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(VisitStatesTest, MemoryThatMayNotBeWritableAndExecutableIsVisitedAllTheSame) {
  expect_unharmed(
      [&] {
        constexpr int kSetMdwe = 65;  // PR_SET_MDWE
        if (::prctl(kSetMdwe, 1, 0, 0, 0) != 0) ++shared_->damage;
        count();
      },
      5);
}

TEST_F(VisitStatesTest, NoAddressSpaceLeftIsRefusedBeforeTheTreeIsStopped) {
  const pid_t pid = start([&] {
    const uint64_t mapped = std::stoull(read_file_at(AT_FDCWD, "/proc/self/statm")) * kPageSize;
    const rlimit limit{mapped + kPageSize, mapped + kPageSize};
    ::setrlimit(RLIMIT_AS, &limit);
    count();
  });
  expect_refused(pid, "RLIMIT_AS");
  DumpOptions options;
  options.root = Pid(pid);
  options.shell_job = true;
  options.before_stop = [] { ADD_FAILURE() << "the tree is stopped"; };
  try {
    Dump::preflight(options, *log_);
    ADD_FAILURE() << "not refused";
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("RLIMIT_AS"), std::string::npos) << e.what();
  }
}

bool has_landlock() { return ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0; }

void restrict_by_landlock() {
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  landlock_ruleset_attr rules{};
  rules.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE;
  const long fd = ::syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
  if (fd < 0 || ::syscall(SYS_landlock_restrict_self, fd, 0) != 0) ::_exit(1);
}

void become(uid_t uid) {
  if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) ::_exit(1);
}

class LandlockTest : public VisitStatesTest, public testing::WithParamInterface<uid_t> {};

TEST_P(LandlockTest, ADomainIsRefused) {
  if (!has_landlock()) GTEST_SKIP() << "this kernel has no landlock";
  expect_refused(start([&] {
                   become(GetParam());
                   restrict_by_landlock();
                   count();
                 }),
                 "landlock");
}

TEST_P(LandlockTest, ADomainOfOneThreadIsRefused) {
  if (!has_landlock()) GTEST_SKIP() << "this kernel has no landlock";
  expect_refused(start([&] {
                   become(GetParam());
                   std::thread([&] {
                     restrict_by_landlock();
                     count();
                   }).detach();
                   for (;;) ::pause();
                 }),
                 "landlock");
}

TEST_P(LandlockTest, WithoutOneItIsVisited) {
  const pid_t pid = start([&] {
    become(GetParam());
    // Another user than the leader's: it needs a witness of its own.
    std::thread([&] {
      if (GetParam() == 0) ::syscall(SYS_setresuid, 12345, 12345, 12345);
      for (;;) ::pause();
    }).detach();
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    count();
  });
  visit(pid);
  EXPECT_TRUE(goes_on());
}

TEST_P(LandlockTest, TheTrackerRefusesItAtItsFirstVisit) {
  if (!has_landlock()) GTEST_SKIP() << "this kernel has no landlock";
  const pid_t pid = start([&] {
    become(GetParam());
    restrict_by_landlock();
    count();
  });
  DirtyTracker tracker({.root = Pid(pid)}, *log_);
  EXPECT_THROW(tracker.next_round(), Refusal);
  EXPECT_TRUE(goes_on());
}

/// Its witness must be seen from in there.
TEST_P(LandlockTest, InAPidNamespaceOfItsOwn) {
  if (!has_landlock()) GTEST_SKIP() << "this kernel has no landlock";
  for (const bool restricted : {false, true}) {
    shared_->ready = 0;
    start([&] {
      if (::unshare(CLONE_NEWPID) != 0) ::_exit(1);
      shared_->inner = fork_program([&] {
        become(GetParam());
        if (restricted) restrict_by_landlock();
        count();
      });
      for (;;) ::pause();
    });
    ASSERT_TRUE(eventually([&] { return shared_->inner != 0; }));
    const pid_t pid = shared_->inner;
    EXPECT_EQ(ProcDir(pid).status()["NSpid"], std::to_string(pid) + "\t1");
    if (restricted) {
      expect_refused(pid, "landlock");
    } else {
      visit(pid);
    }
    EXPECT_TRUE(goes_on());
    ::kill(pid, SIGKILL);  // it would not die with its parent: it has other credentials
    shared_->inner = 0;
  }
}

INSTANTIATE_TEST_SUITE_P(Users, LandlockTest, testing::Values(0, 65534));

TEST_F(VisitStatesTest, StrictSeccompOfOneThreadIsRefused) {
  const pid_t pid = start([&] {
    ::setsid();
    ::close_range(0, ~0u, 0);
    std::thread([&] {
      ::prctl(PR_SET_SECCOMP, 1);
      count();
    }).detach();
    for (;;) ::pause();
  });
  DumpOptions options;
  options.root = Pid(pid);
  EXPECT_THROW(Dump(options, *log_), Refusal);  // as if it had come after the preflight
  EXPECT_TRUE(goes_on());
}

}  // namespace
}  // namespace migrate
