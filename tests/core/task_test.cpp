// XSAVE splitting, texts of /proc, and how interrupted calls are taken up again.
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <cstring>

#include "core/task/proc_text.h"
#include "core/task/restart.h"
#include "core/task/xsave.h"
#include "tests/core/forked_programs.h"

namespace migrate {
namespace {

TEST(Xsave, SurvivesSplittingAndJoining) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    volatile double x = 1.5;
    x = x * 2.25;
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  std::vector<std::byte> area(1 << 14);
  iovec io{area.data(), area.size()};
  ASSERT_EQ(::ptrace(PTRACE_GETREGSET, child, 0x202, &io), 0);  // NT_X86_XSTATE
  area.resize(io.iov_len);
  img::user_x86_fpregs_entry entry;
  std::string unknown;
  ASSERT_TRUE(pack_xsave(area, entry, unknown)) << unknown;
  std::vector<std::byte> back = unpack_xsave(entry);
  ASSERT_GE(back.size(), 576u);
  // Bytes 416 to 511 are the kernel's, not the thread's.
  EXPECT_EQ(std::memcmp(back.data(), area.data(), 416), 0);
  ASSERT_LE(back.size(), area.size());
  EXPECT_EQ(std::memcmp(back.data() + 512, area.data() + 512, back.size() - 512), 0);
  io = {back.data(), back.size()};
  EXPECT_EQ(::ptrace(PTRACE_SETREGSET, child, 0x202, &io), 0) << std::strerror(errno);
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
}

TEST(Xsave, NamesStateThatHasNoField) {
  std::vector<std::byte> area(4096);
  const uint64_t in_use = 0b111 | uint64_t{1} << 18;
  std::memcpy(area.data() + 512, &in_use, sizeof in_use);
  img::user_x86_fpregs_entry entry;
  std::string unknown;
  EXPECT_FALSE(pack_xsave(area, entry, unknown));
  EXPECT_EQ(unknown, "AMX tile");
}

TEST(Xsave, RefusesDamagedArrays) {
  img::user_x86_fpregs_entry entry;
  std::string unknown;
  ASSERT_TRUE(pack_xsave(std::vector<std::byte>(4096), entry, unknown));
  entry.add_xmm_space(1);
  EXPECT_THROW(unpack_xsave(entry), Corrupt);
}

TEST(ProcText, Limits) {
  const auto limits = parse_limits(read_file_at(AT_FDCWD, "/proc/self/limits"));
  for (int resource : {RLIMIT_NOFILE, RLIMIT_STACK, RLIMIT_FSIZE, RLIMIT_LOCKS, RLIMIT_RTTIME}) {
    rlimit own{};
    ASSERT_EQ(::getrlimit(static_cast<__rlimit_resource_t>(resource), &own), 0);
    EXPECT_EQ(limits[static_cast<size_t>(resource)].cur, own.rlim_cur) << resource;
    EXPECT_EQ(limits[static_cast<size_t>(resource)].max, own.rlim_max) << resource;
  }
  EXPECT_THROW(parse_limits("Max cpu time  1 2\n"), Corrupt);
}

TEST(ProcText, Timers) {
  const auto timers = parse_timers(
      "ID: 0\nsignal: 14/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n"
      "ID: 1\nsignal: 34/0000000000000001\nnotify: signal/tid.77\nClockID: -6\n"
      "ID: 5\nsignal: 14/0000000000000000\nnotify: none/pid.2634\nClockID: 1\n");
  ASSERT_EQ(timers.size(), 3u);
  EXPECT_EQ(timers[0].signal, 14);
  EXPECT_EQ(timers[0].sigval, 0x7fff86e452a8u);
  EXPECT_EQ(timers[0].notify, SIGEV_SIGNAL);
  EXPECT_EQ(timers[1].notify, SIGEV_SIGNAL | 4);
  EXPECT_EQ(timers[1].target, 77);
  EXPECT_EQ(timers[1].clock, -6);
  EXPECT_EQ(timers[2].notify, SIGEV_NONE);
  EXPECT_EQ(timers[2].id, 5);
}

TEST(ProcText, SyscallAndSched) {
  const auto call = parse_syscall("35 0x7ffe1 0x0 0x3 0x4 0x5 0x6 0x7ffe0 0x401000\n");
  ASSERT_TRUE(call);
  EXPECT_EQ(call->nr, 35);
  EXPECT_EQ(call->args[0], 0x7ffe1u);
  EXPECT_EQ(call->ip, 0x401000u);
  EXPECT_FALSE(parse_syscall("running\n"));
  EXPECT_FALSE(parse_syscall("-1 0x7ffe0 0x401000\n"));
  EXPECT_EQ(parse_exec_start("x\nse.exec_start        :       1969370.563617\n"), 1969370563617);
  EXPECT_FALSE(parse_exec_start("nothing"));
  EXPECT_FALSE(parse_exec_start("x\nse.exec_start        :             0.000000\n"));
}

class Restart : public testing::Test {
 protected:
  Restart() : mem(open_path("/proc/self/mem", O_RDONLY)) {
    regs.rip = 0x401002;
    regs.rsp = 0x7000;
    regs.rdi = 1;
    regs.rsi = 2;
    facts.mem_fd = mem.get();
    facts.as_of_ns = 10'000'000'000;
    facts.voluntary_switches = 8;
    sample.voluntary_switches = 7;
    sample.since_ns = 7'000'000'000;  // asleep for three seconds
    sample.call.ip = regs.rip;
    sample.call.sp = regs.rsp;
  }
  ImageRegisters interrupted(long nr, int64_t result) {
    regs.orig_rax = static_cast<uint64_t>(nr);
    regs.rax = static_cast<uint64_t>(result);
    sample.call.nr = nr;
    facts.sample = &sample;
    return image_registers(regs, facts);
  }
  void expect_reissued(const ImageRegisters& out, long nr) {
    EXPECT_EQ(out.regs.rax, static_cast<uint64_t>(nr));
    EXPECT_EQ(out.regs.rip, 0x401000u);
    EXPECT_EQ(static_cast<int64_t>(out.regs.orig_rax), -1);
    ASSERT_TRUE(out.restart);
    EXPECT_EQ(out.restart->nr(), nr);
  }

  Fd mem;
  user_regs_struct regs{};
  SleepSample sample;
  RestartFacts facts;
  struct timespec wait {
    5, 0
  };
};

TEST_F(Restart, PlainCodesIssueTheCallAgain) {
  for (const int64_t code : {-512, -513, -514}) {
    const auto out = interrupted(SYS_read, code);
    expect_reissued(out, SYS_read);
    EXPECT_EQ(out.restart->restart_code(), code);
  }
}

TEST_F(Restart, OutsideOfCallsNothingChanges) {
  regs.rax = static_cast<uint64_t>(-516);
  regs.orig_rax = UINT64_MAX;
  const auto out = image_registers(regs, facts);
  EXPECT_FALSE(out.restart);
  EXPECT_EQ(out.regs.rip, regs.rip);
}

TEST_F(Restart, PollWaitsForWhatIsLeft) {
  regs.rdx = 5000;
  EXPECT_EQ(interrupted(SYS_poll, -516).regs.rdx, 2010u);  // the scheduler's clock is not exact: never early
  expect_reissued(interrupted(SYS_poll, -516), SYS_poll);
  facts.voluntary_switches = 9;  // it woke in between: since when it sleeps is unknown
  EXPECT_EQ(interrupted(SYS_poll, -516).regs.rdx, 5000u);
}

TEST_F(Restart, TimesThatWereChangedInMemoryAreNotReckonedWith) {
  regs.rsi = 0;
  regs.rdi = reinterpret_cast<uint64_t>(&wait);
  EXPECT_TRUE(interrupted(SYS_nanosleep, -516).restart->has_timespec_arg());
  for (const long ns : {-1L, 1'000'000'000L, INT64_MAX, INT64_MIN}) {
    wait.tv_nsec = ns;
    const auto out = interrupted(SYS_nanosleep, -516);
    expect_reissued(out, SYS_nanosleep);
    EXPECT_FALSE(out.restart->has_timespec_arg()) << ns;
  }
}

TEST_F(Restart, NanosleepGoesOnFromTheKernelsRemainder) {
  regs.rsi = 0x8000;
  const auto out = interrupted(SYS_nanosleep, -516);
  expect_reissued(out, SYS_nanosleep);
  EXPECT_EQ(out.regs.rdi, 0x8000u);
  EXPECT_FALSE(out.restart->has_timespec_arg());
}

TEST_F(Restart, NanosleepWithoutRemainderAsksForATimespec) {
  regs.rdi = reinterpret_cast<uint64_t>(&wait);
  regs.rsi = 0;
  const auto out = interrupted(SYS_nanosleep, -516);
  EXPECT_EQ(out.restart->timespec_arg(), 0u);
  EXPECT_EQ(out.restart->remaining_ns(), 2'010'000'000u);
}

TEST_F(Restart, FutexWaitIsRelativeAndWaitBitsetAbsolute) {
  regs.r10 = reinterpret_cast<uint64_t>(&wait);
  regs.rsi = 128;  // FUTEX_WAIT_PRIVATE
  EXPECT_EQ(interrupted(SYS_futex, -516).restart->remaining_ns(), 2'010'000'000u);
  regs.rsi = 128 | 9;  // FUTEX_WAIT_BITSET_PRIVATE
  EXPECT_FALSE(interrupted(SYS_futex, -516).restart->has_timespec_arg());
}

TEST_F(Restart, EpollThatWeInterruptedIsIssuedAgain) {
  regs.r10 = 5000;
  const auto out = interrupted(SYS_epoll_wait, -EINTR);
  expect_reissued(out, SYS_epoll_wait);
  EXPECT_EQ(out.regs.r10, 2010u);
  regs.r10 = static_cast<uint64_t>(-1);
  EXPECT_EQ(interrupted(SYS_epoll_wait, -EINTR).regs.r10, static_cast<uint64_t>(-1));
  facts.signal_pending = true;  // that one interrupted it
  EXPECT_FALSE(interrupted(SYS_epoll_wait, -EINTR).restart);
}

TEST_F(Restart, RestartSyscallIsKnownByWhereItWaits) {
  sample.wchan = "hrtimer_nanosleep";
  regs.rdi = reinterpret_cast<uint64_t>(&wait);
  regs.rsi = 0x8000;
  expect_reissued(interrupted(SYS_restart_syscall, -516), SYS_nanosleep);
  sample.wchan = "do_syscall_64";  // after one restart
  expect_reissued(interrupted(SYS_restart_syscall, -516), SYS_nanosleep);
  sample.wchan = "0";
  EXPECT_EQ(static_cast<int64_t>(interrupted(SYS_restart_syscall, -516).regs.rax), -EINTR);
}

TEST(Survey, RecallsWhichCallGoesOnAndSinceWhen) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(pipe_fds[0]);
    const struct timespec hour { 3600, 0 };
    ::write(pipe_fds[1], "x", 1);
    ::nanosleep(&hour, nullptr);
    ::_exit(0);
  }
  char c;
  ASSERT_EQ(::read(pipe_fds[0], &c, 1), 1);
  const ProcDir proc(child);
  const auto call_of = [&] {
    const auto call = parse_syscall(proc.read("syscall"));
    return call ? call->nr : -1;
  };
  ASSERT_TRUE(eventually([&] { return call_of() >= 0; }));
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child);
  const SleepSurvey before(tasks);
  const long nr = call_of();
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, child, 0, 0), 0);
  ::ptrace(PTRACE_INTERRUPT, child, 0, 0);
  ::waitpid(child, nullptr, __WALL);
  ::ptrace(PTRACE_DETACH, child, 0, 0);
  ASSERT_TRUE(eventually([&] { return call_of() == SYS_restart_syscall; }));
  SleepSurvey after(tasks);
  ASSERT_NE(after.find(child), nullptr);
  EXPECT_FALSE(after.find(child)->continued);
  after.recall(before);
  EXPECT_EQ(after.find(child)->continued, nr);
  EXPECT_EQ(after.find(child)->since_ns, before.find(child)->since_ns);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  for (const int fd : pipe_fds) ::close(fd);
}

TEST(Survey, BusyThreadHidesNoSleeper) {
  const pid_t busy = ::fork();
  if (busy == 0) {
    while (true) {
      [[maybe_unused]] volatile int nothing = 0;
    }
  }
  const pid_t asleep = ::fork();
  if (asleep == 0) {
    ::pause();
    ::_exit(0);
  }
  EXPECT_TRUE(eventually([&] { return parse_syscall(ProcDir(asleep).read("syscall")).has_value(); }));
  std::vector<ProcDir> tasks;
  tasks.emplace_back(busy);
  tasks.emplace_back(asleep);
  const SleepSurvey survey(tasks);
  EXPECT_EQ(survey.find(busy), nullptr);
  ASSERT_NE(survey.find(asleep), nullptr);
  EXPECT_EQ(survey.find(asleep)->call.nr, SYS_pause);
  for (const pid_t pid : {busy, asleep}) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
}

// On a busy machine it may seem to have begun later than it did, never earlier.
TEST(Survey, SeesSinceWhenATaskSleeps) {
  constexpr int64_t kUncertain = 10'000'000;
  const int64_t forked = monotonic_ns();
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char c;
    ::close(pipe_fds[1]);
    ::_exit(static_cast<int>(::read(pipe_fds[0], &c, 1)));
  }
  ::close(pipe_fds[0]);
  const ProcDir proc(child);
  ASSERT_TRUE(eventually([&] { return parse_syscall(proc.read("syscall")).has_value(); }));
  const int64_t before = monotonic_ns();
  while (monotonic_ns() < before + 50'000'000) ::usleep(1000);
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child);
  EXPECT_TRUE(eventually([&] {
    const SleepSurvey survey(tasks);
    const SleepSample* sample = survey.find(child);
    if (sample == nullptr) return false;
    EXPECT_EQ(sample->call.nr, SYS_read);
    EXPECT_GE(sample->since_ns, forked - kUncertain);
    return sample->since_ns <= before + kUncertain;
  }));
  ::close(pipe_fds[1]);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace migrate
