#include "core/task/interrupted_calls.h"

#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <string>

#include "core/base/proc_values.h"
#include "core/freeze/tracee.h"

namespace migrate {
namespace {

constexpr int64_t kRestartUnlessHandled = -514;  // include/linux/errno.h

/// Calls that a stop ends with EINTR and whose time-out is in a register.
bool has_milliseconds(uint64_t nr) { return nr == SYS_epoll_wait || nr == SYS_epoll_pwait; }

/// 0 where the kernel does not tell.
uint64_t number(const StatusFields& status, const std::string& key, int base) {
  const auto it = status.find(key);
  return it == status.end() ? 0 : parse_number(it->second, "/proc/PID/status: " + key, base);
}

constexpr uint64_t signal_bit(int signal) { return uint64_t{1} << (signal - 1); }

/// An unblocked signal waits that is not ignored: the call ends for that one. While a task is traced the kernel queues
/// ignored signals too (a child that ends: SIGCHLD), which else would not have interrupted anything.
bool signal_pending(const StatusFields& status) {
  constexpr uint64_t kIgnoredByDefault =
      signal_bit(SIGCHLD) | signal_bit(SIGCONT) | signal_bit(SIGURG) | signal_bit(SIGWINCH);
  const uint64_t pending = number(status, "SigPnd", 16) | number(status, "ShdPnd", 16);
  const uint64_t ignored = number(status, "SigIgn", 16) | (kIgnoredByDefault & ~number(status, "SigCgt", 16));
  return (pending & ~number(status, "SigBlk", 16) & ~ignored) != 0;
}

/// Of a time-out in milliseconds; the whole of it if the call began after the sample.
uint64_t time_left(const user_regs_struct& regs, const SleepSample* sample, const StatusFields& status) {
  const auto asked = static_cast<int32_t>(regs.r10);
  // It woke once, for our stop.
  const bool same = sample != nullptr && sample->call.sp == regs.rsp && sample->call.ip == regs.rip &&
                    sample->call.nr == static_cast<long>(regs.orig_rax) &&
                    number(status, "voluntary_ctxt_switches", 10) == sample->voluntary_switches + 1;
  if (asked <= 0 || !same) return regs.r10;
  // The scheduler's clock is not CLOCK_MONOTONIC: a little late is allowed, early is not.
  constexpr int64_t kUncertain = 10'000'000;
  const int64_t slept = std::max<int64_t>(monotonic_ns() - sample->since_ns - kUncertain, 0);
  return static_cast<uint64_t>(std::max<int64_t>(asked - slept / 1'000'000, 0));
}

}  // namespace

SleepSurvey survey_interruptible(const ProcDir& task) {
  const auto waits = [&](pid_t tid) {
    try {
      const auto call = parse_syscall(task.thread(tid).read("syscall"));
      return call && has_milliseconds(static_cast<uint64_t>(call->nr));
    } catch (const Error&) {  // it ended
      return false;
    }
  };
  const std::vector<pid_t> threads = task.threads();
  if (std::ranges::none_of(threads, waits)) return {};
  std::vector<ProcDir> one;
  one.emplace_back(task.pid());
  return SleepSurvey(one);
}

void mend_interrupted(StoppedTask& task, const SleepSurvey& survey) {
  for (StoppedThread& thread : task.threads) {
    user_regs_struct& regs = thread.regs;
    if (static_cast<int64_t>(regs.rax) != -EINTR || static_cast<int64_t>(regs.orig_rax) < 0) continue;
    if (!has_milliseconds(regs.orig_rax)) continue;
    const StatusFields status = task.proc.thread(thread.tid.get()).status();
    if (signal_pending(status)) continue;
    regs.r10 = time_left(regs, survey.find(thread.tid.get()), status);
    regs.rax = static_cast<uint64_t>(kRestartUnlessHandled);
    tracee::set_registers(thread.tid, regs);
  }
}

}  // namespace migrate
