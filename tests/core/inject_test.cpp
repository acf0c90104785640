// The parasite visit: results, and a task that goes on undisturbed whatever happens to its visitor.
#include "core/inject/harvest.h"

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <thread>

#include "core/freeze/tracee.h"
#include "core/inject/remote_call.h"
#include "core/inject/visit_places.h"
#include "tests/core/forked_programs.h"
#include "tests/core/visits.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

/// Memory that the test and its forked programs share.
struct Shared {
  std::atomic<uint32_t> ready{0};
  std::atomic<uint64_t> progress[512]{};
  std::atomic<uint32_t> damage{0};  ///< a program found its own state changed
  std::atomic<uint32_t> quit{0};
  std::atomic<uint32_t> word{0};  ///< nobody ever wakes it
  std::atomic<uint32_t> finished{0};
  std::atomic<uint64_t> stopped_us{0};  ///< how long the program was stopped, in all
  int ids[2]{};                         ///< of POSIX timers
};

class InjectTest : public ForkedPrograms<Shared> {
 protected:
  pid_t start(const std::function<void()>& body) { return fork_program(body); }
  bool wait_ready(uint32_t n) {
    return eventually([&] { return shared_->ready.load() >= n; });
  }
  bool goes_on(int slot = 0) {
    const uint64_t seen = shared_->progress[slot].load();
    return eventually([&] { return shared_->progress[slot].load() > seen + 100; });
  }
};

char state_of(pid_t pid) { return ProcDir(pid).stat().state; }

/// The bytes of the vdso, to see that the slots are gone.
std::vector<std::byte> vdso_of(pid_t pid) {
  for (const MapsLine& line : parse_maps(maps_of(pid))) {
    if (line.name != "[vdso]") continue;
    std::vector<std::byte> bytes(line.range.bytes());
    const Fd mem = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDONLY);
    pread_full(mem.get(), bytes, line.range.start.get(), "vdso");
    return bytes;
  }
  return {};
}

/// Spins over all general registers but rsp, the flags and xmm0..15, and compares each with what it put there. Counts
/// `progress` up; returns when something differs (true) or `quit` is set (false).
bool check_registers(std::atomic<uint64_t>* progress, std::atomic<uint32_t>* quit) {
  uint64_t failed = 0;
  asm volatile(R"(
    sub $256, %%rsp
    push %%rbp
    mov %[progress], %%rdi
    mov %[quit], %%rsi
    mov $0x1111111111111111, %%rax
    movq %%rax, %%xmm0
    movq %%rax, %%xmm7
    movq %%rax, %%xmm15
    mov $0x22, %%rbx
    mov $0x33, %%rcx
    mov $0x44, %%rdx
    mov $0x55, %%rbp
    mov $0x88, %%r8
    mov $0x99, %%r9
    mov $0xaa, %%r10
    mov $0xbb, %%r11
    mov $0xcc, %%r12
    mov $0xdd, %%r13
    mov $0xee, %%r14
    mov $0xff, %%r15
  1:
    lock incq (%%rdi)
    cmp $0x22, %%rbx
    jne 2f
    cmp $0x33, %%rcx
    jne 2f
    cmp $0x44, %%rdx
    jne 2f
    cmp $0x55, %%rbp
    jne 2f
    cmp $0x88, %%r8
    jne 2f
    cmp $0x99, %%r9
    jne 2f
    cmp $0xaa, %%r10
    jne 2f
    cmp $0xbb, %%r11
    jne 2f
    cmp $0xcc, %%r12
    jne 2f
    cmp $0xdd, %%r13
    jne 2f
    cmp $0xee, %%r14
    jne 2f
    cmp $0xff, %%r15
    jne 2f
    movq %%xmm0, %%r15
    cmp %%rax, %%r15
    jne 2f
    movq %%xmm7, %%r15
    cmp %%rax, %%r15
    jne 2f
    movq %%xmm15, %%r15
    cmp %%rax, %%r15
    jne 2f
    mov $0xff, %%r15
    push %%rax
    push $0xed7
    popfq
    pushfq
    pop %%rax
    and $0xcd5, %%rax
    cmp $0xcd5, %%rax
    cld
    pop %%rax
    jne 2f
    cmpl $0, (%%rsi)
    je 1b
    xor %%eax, %%eax
    jmp 3f
  2:
    mov $1, %%eax
  3:
    pop %%rbp
    add $256, %%rsp
  )"
               : "=&a"(failed)
               : [progress] "D"(progress), [quit] "S"(quit)
               : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm7", "xmm15",
                 "memory", "cc");
  return failed != 0;
}

void spin_checked(Shared* s) {
  s->ready++;
  if (check_registers(&s->progress[0], &s->quit)) s->damage = 1;
  s->finished++;
}

TEST_F(InjectTest, SingleThreadGoesOnWithTheSameMapsAndRegisters) {
  const pid_t pid = start([&] { spin_checked(shared_); });
  ASSERT_TRUE(wait_ready(1));
  const std::string maps = maps_of(pid);
  const auto vdso = vdso_of(pid);
  for (int i = 0; i < 20; ++i) {
    StoppedTree tree(Pid(pid), {}, *log_);
    const TaskHarvest h = harvest(tree.root(), {}, *log_);
    EXPECT_EQ(h.threads.size(), 1u);
    EXPECT_GT(h.monotonic.tv_sec + h.monotonic.tv_nsec, 0);
  }
  EXPECT_EQ(maps_of(pid), maps);
  EXPECT_EQ(vdso_of(pid), vdso);
  EXPECT_TRUE(goes_on());
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(InjectTest, ResultsAreWhatTheProgramSetItself) {
  static char altstack[65536];
  static timer_t timers[2];
  const pid_t pid = start([&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaddset(&action.sa_mask, SIGUSR2);
    ::sigaction(SIGUSR1, &action, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    const stack_t stack{altstack, 0, sizeof altstack};
    ::sigaltstack(&stack, nullptr);
    const itimerval real{{7, 0}, {1000, 0}};
    ::setitimer(ITIMER_REAL, &real, nullptr);
    for (timer_t& t : timers) {
      sigevent event{};
      event.sigev_notify = SIGEV_NONE;
      ::timer_create(CLOCK_MONOTONIC, &event, &t);
    }
    const itimerspec spec{{3, 500}, {500, 0}};
    ::timer_settime(timers[1], 0, &spec, nullptr);
    for (int i = 0; i < 2; ++i) shared_->ids[i] = static_cast<int>(reinterpret_cast<intptr_t>(timers[i]));
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::prctl(PR_SET_SECUREBITS, 1 << 6);  // SECBIT_NO_CAP_AMBIENT_RAISE
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    ::prctl(PR_SET_DUMPABLE, 0);
    shared_->ready++;
    for (;;) ::pause();
  });
  ASSERT_TRUE(wait_ready(1));
  StoppedTree tree(Pid(pid), {}, *log_);
  const TaskHarvest h = harvest(tree.root(), {shared_->ids[0], shared_->ids[1]}, *log_);
  EXPECT_EQ(h.sigactions[SIGUSR1 - 1].flags & (SA_RESTART | SA_ONSTACK), uint64_t{SA_RESTART | SA_ONSTACK});
  EXPECT_EQ(h.sigactions[SIGUSR1 - 1].mask, 1ull << (SIGUSR2 - 1));
  EXPECT_GT(h.sigactions[SIGUSR1 - 1].handler, 4096u);
  EXPECT_EQ(h.sigactions[SIGPIPE - 1].handler, 1u);
  EXPECT_EQ(h.sigactions[SIGTERM - 1].handler, 0u);
  EXPECT_EQ(h.itimers[0].it_interval.tv_sec, 7);
  EXPECT_NEAR(static_cast<double>(h.itimers[0].it_value.tv_sec), 1000, 5);
  ASSERT_EQ(h.posix_timers.size(), 2u);
  EXPECT_EQ(h.posix_timers[0].value.it_value.tv_sec, 0);
  EXPECT_EQ(h.posix_timers[1].value.it_interval.tv_nsec, 500);
  EXPECT_NEAR(static_cast<double>(h.posix_timers[1].value.it_value.tv_sec), 500, 5);
  EXPECT_EQ(h.dumpable, 0);
  EXPECT_EQ(h.child_subreaper, 1);
  EXPECT_GT(h.brk, 0u);
  ASSERT_EQ(h.threads.size(), 1u);
  EXPECT_EQ(h.threads[0].altstack.ss_sp, static_cast<void*>(altstack));
  EXPECT_EQ(h.threads[0].altstack.ss_size, sizeof altstack);
  EXPECT_EQ(h.threads[0].pdeath_signal, SIGTERM);
  EXPECT_EQ(h.threads[0].securebits, 1u << 6);
  EXPECT_NE(h.threads[0].clear_child_tid, 0u);
  EXPECT_THROW(harvest(tree.root(), {4711}, *log_), Error) << "no such timer";
  EXPECT_EQ(tree.root().threads.size(), 1u);
}

/// Five kinds of waiting and working, `n` threads in all. A thread that is disturbed (EINTR, an early or very late end
/// of its sleep) sets `damage`.
void many_threads(Shared* s, int n) {
  std::vector<std::thread> threads;
  static int pipe_fds[2];
  if (::pipe(pipe_fds) != 0) ::_exit(9);
  for (int i = 0; i < n; ++i) {
    threads.emplace_back([s, i] {
      stack_t stack{::malloc(16384), 0, static_cast<size_t>(8192 + 16 * i)};
      ::sigaltstack(&stack, nullptr);
      s->ready++;
      switch (i % 5) {
        case 0:
          while (s->quit == 0) {
            if (::syscall(SYS_futex, &s->word, FUTEX_WAIT, 0, nullptr, nullptr, 0) != 0 && errno == EINTR)
              s->damage = 2;
          }
          break;
        case 1:
          if (::poll(nullptr, 0, -1) != 0) s->damage = 3;
          break;
        case 2: {
          timespec begin, end;
          const timespec span{2, 0};
          ::clock_gettime(CLOCK_MONOTONIC, &begin);
          if (::nanosleep(&span, nullptr) != 0) s->damage = 4;
          ::clock_gettime(CLOCK_MONOTONIC, &end);
          const double took =
              static_cast<double>(end.tv_sec - begin.tv_sec) + static_cast<double>(end.tv_nsec - begin.tv_nsec) / 1e9;
          if (took < 2.0 || took > 3.5 + static_cast<double>(s->stopped_us) / 1e6) s->damage = 5;
          s->finished++;
          break;
        }
        case 3: {
          char c;
          if (::read(pipe_fds[0], &c, 1) != 1) s->damage = 6;
          break;
        }
        default:
          while (s->quit == 0) {
            s->progress[i]++;
            ::usleep(100);
          }
      }
      for (;;) ::pause();
    });
  }
  for (;;) {
    s->progress[511]++;
    ::usleep(100);
  }
}

TEST_F(InjectTest, ThreadsGoOnWhateverTheyWait) {
  constexpr int kThreads = 256;
  const pid_t pid = start([&] { many_threads(shared_, kThreads); });
  ASSERT_TRUE(wait_ready(kThreads));
  const std::string maps = maps_of(pid);
  for (int round = 0; round < 3; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    StoppedTree tree(Pid(pid), {}, *log_);
    const auto stopped = std::chrono::steady_clock::now();
    ASSERT_EQ(tree.root().threads.size(), kThreads + 1u);
    const TaskHarvest h = harvest(tree.root(), {}, *log_);
    const auto done = std::chrono::steady_clock::now();
    shared_->stopped_us += static_cast<uint64_t>((done - begin) / std::chrono::microseconds(1));
    ASSERT_EQ(h.threads.size(), kThreads + 1u);
    std::set<size_t> sizes;
    for (const ThreadHarvest& t : h.threads) sizes.insert(t.altstack.ss_size);
    EXPECT_EQ(sizes.size(), kThreads + 1u) << "each thread has told its own";
    const auto us = [](auto span) { return std::chrono::duration_cast<std::chrono::microseconds>(span).count(); };
    std::printf("stop %ld us, harvest %ld us for %d threads\n", us(stopped - begin), us(done - stopped), kThreads + 1);
  }
  EXPECT_EQ(maps_of(pid), maps);
  EXPECT_TRUE(goes_on(4));
  EXPECT_TRUE(goes_on(511));
  EXPECT_TRUE(eventually([&] { return shared_->finished >= kThreads / 5; }));
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(InjectTest, GroupStoppedStaysStopped) {
  const pid_t pid = start([&] { many_threads(shared_, 4); });
  ASSERT_TRUE(wait_ready(4));
  ::kill(pid, SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, WUNTRACED), pid);
  ASSERT_TRUE(WIFSTOPPED(status));
  const std::string maps = maps_of(pid);
  const uint64_t progress = shared_->progress[511];
  {
    StoppedTree tree(Pid(pid), {}, *log_);
    EXPECT_EQ(tree.root().state, TaskState::group_stopped);
    EXPECT_EQ(tree.root().stop_signal, SIGSTOP);
    EXPECT_EQ(harvest(tree.root(), {}, *log_).threads.size(), 5u);
  }
  ASSERT_TRUE(eventually([&] { return state_of(pid) == 'T'; }));
  ::usleep(20'000);
  EXPECT_EQ(state_of(pid), 'T');
  EXPECT_EQ(shared_->progress[511], progress);
  EXPECT_EQ(maps_of(pid), maps);
  ::kill(pid, SIGCONT);
  EXPECT_TRUE(goes_on(511));
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(InjectTest, SeccompIsRefused) {
  const pid_t pid = start([&] {
    struct {
      uint16_t code;
      uint8_t jt, jf;
      uint32_t k;
    } allow{0x06, 0, 0, 0x7fff0000};
    struct {
      uint16_t len;
      void* filter;
    } program{1, &allow};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ::prctl(PR_SET_SECCOMP, 2, &program);
    shared_->ready++;
    for (;;) shared_->progress[0]++;
  });
  ASSERT_TRUE(wait_ready(1));
  {
    StoppedTree tree(Pid(pid), {}, *log_);
    EXPECT_THROW(harvest(tree.root(), {}, *log_), Refusal);
  }
  EXPECT_TRUE(goes_on());
}

TEST_F(InjectTest, RemoteCallsGiveTheRegistersBack) {
  const pid_t pid = start([&] { spin_checked(shared_); });
  ASSERT_TRUE(wait_ready(1));
  {
    StoppedTree tree(Pid(pid), {}, *log_);
    const Fd mem = tree.root().proc.open("mem", O_RDONLY);
    std::optional<RemoteAddr> instruction;
    for (const MapsLine& line : parse_maps(maps_of(pid))) {
      if (line.name == "[vdso]") instruction = find_syscall_instruction(mem.get(), line.range);
    }
    ASSERT_TRUE(instruction);
    RemoteCalls calls(tree.root().threads.front().tid, *instruction);
    EXPECT_EQ(calls.call(SYS_getpid), pid);
    EXPECT_EQ(calls.call(SYS_close, {~0ull}), -EBADF);
    EXPECT_EQ(calls.call(SYS_getppid), ::getpid());
  }
  EXPECT_TRUE(goes_on());
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(InjectTest, TracerKilledAtEveryStageLeavesASpinningTaskUnharmed) {
  const pid_t pid = start([&] { spin_checked(shared_); });
  ASSERT_TRUE(wait_ready(1));
  const std::string maps = maps_of(pid);
  unsigned stages = 0;
  for (;; ++stages) {
    std::string name;
    const bool died = visit_and_die(pid, stages, &name);
    SCOPED_TRACE("killed at: " + name);
    ASSERT_FALSE(name.starts_with("error")) << name;
    ASSERT_TRUE(goes_on());
    ASSERT_TRUE(eventually([&] { return maps_of(pid) == maps; })) << maps_of(pid);
    ASSERT_EQ(shared_->damage, 0u);
    if (!died) break;
  }
  EXPECT_GT(stages, 12u);
  shared_->quit = 1;
  EXPECT_TRUE(eventually([&] { return shared_->finished == 1; }));
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(InjectTest, TracerKilledAtEveryStageLeavesThreadsUnharmed) {
  unsigned stages = 0;
  for (bool died = true; died; ++stages) {
    new (shared_) Shared;
    const pid_t pid = start([&] { many_threads(shared_, 10); });
    ASSERT_TRUE(wait_ready(10));
    const std::string maps = maps_of(pid);
    std::string name;
    died = visit_and_die(pid, stages, &name);
    SCOPED_TRACE("killed at: " + name);
    ASSERT_FALSE(name.starts_with("error")) << name;
    ASSERT_TRUE(goes_on(4));
    ASSERT_TRUE(goes_on(9));
    ASSERT_TRUE(goes_on(511));
    ASSERT_TRUE(eventually([&] { return maps_of(pid) == maps; })) << maps_of(pid);
    ASSERT_EQ(shared_->damage, 0u);
    ::kill(pid, SIGKILL);
    reap(pid);
    // One thread of each kind is enough.
    if (stages > 60) break;
  }
  EXPECT_GT(stages, 30u);
}

}  // namespace
}  // namespace migrate
