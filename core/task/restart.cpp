#include "core/task/restart.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "core/base/clock.h"

namespace migrate {

uint64_t voluntary_switches(std::string_view status) {
  constexpr std::string_view kKey = "\nvoluntary_ctxt_switches:\t";
  uint64_t value = 0;
  const size_t at = status.find(kKey);
  if (at == std::string_view::npos) return value;
  const std::string_view rest = status.substr(at + kKey.size());
  std::from_chars(rest.data(), rest.data() + rest.size(), value);
  return value;
}

/// The scheduler's clock runs per CPU, without stolen and interrupt time: its distance from CLOCK_MONOTONIC is measured
/// on each CPU that matters, by our own exec_start right after a switch.
class SchedulerClock {
 public:
  SchedulerClock() {
    CPU_ZERO(&before_);
    known_ = ::sched_getaffinity(0, sizeof before_, &before_) == 0;
  }
  SchedulerClock(const SchedulerClock&) = delete;
  SchedulerClock& operator=(const SchedulerClock&) = delete;
  ~SchedulerClock() {
    if (known_) ::sched_setaffinity(0, sizeof before_, &before_);
  }

  /// To be added to an exec_start of `cpu`; nullopt: not to be known.
  std::optional<int64_t> offset(int cpu) {
    const auto it = offsets_.find(cpu);
    if (it != offsets_.end()) return it->second;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<size_t>(cpu), &one);
    ::sched_setaffinity(0, sizeof one, &one);  // refused: measured where we are
    return offsets_[cpu] = measure();
  }

 private:
  /// exec_start is noted when we get on the CPU, and at each tick. Where the CPU was lost between our two looks it is
  /// newer than the first: that would make sleeps older than they are, and end them too early; too late is allowed.
  static std::optional<int64_t> measure() {
    constexpr int kTries = 10;
    constexpr int64_t kAtOnce = 1'000'000;
    std::optional<int64_t> offset;
    for (int tries = 0; tries < kTries; ++tries) {
      // Off the CPU and on it again.
      const timespec instant{0, 1};
      ::nanosleep(&instant, nullptr);
      const int64_t before = monotonic_ns();
      const auto start = parse_exec_start(read_file_at(AT_FDCWD, "/proc/thread-self/sched"));
      const int64_t after = monotonic_ns();
      if (!start) return std::nullopt;
      if (after - before < kAtOnce) return before - *start;
      offset = after - *start;
    }
    return offset;
  }

  cpu_set_t before_;
  bool known_ = false;
  std::map<int, std::optional<int64_t>> offsets_;
};

namespace {

// Kernel-internal results of interrupted calls (include/linux/errno.h).
constexpr int64_t kRestartSys = -512, kRestartNoIntr = -513, kRestartNoHand = -514, kRestartBlock = -516;
constexpr size_t kSyscallBytes = 2;  // length of the `syscall` instruction

/// Field 39 of /proc/TID/stat.
int last_cpu(std::string_view stat) {
  size_t at = stat.rfind(')');
  for (int field = 2; field < 39 && at != std::string_view::npos; ++field) at = stat.find(' ', at + 1);
  int cpu = 0;
  if (at != std::string_view::npos) std::from_chars(stat.data() + at + 1, stat.data() + stat.size(), cpu);
  return cpu;
}

/// /proc/TID/schedstat; the kernel counts at its ticks. 0 where it does not tell.
uint64_t run_time(const ProcDir& thread) {
  uint64_t ns = 0;
  try {
    const std::string stat = thread.read("schedstat");
    std::from_chars(stat.data(), stat.data() + stat.size(), ns);
  } catch (const Error&) {  // ended, or a kernel without it
  }
  return ns;
}

/// Since it was first seen it has run for longer than the way back into a call takes.
bool is_busy(const ProcDir& thread, uint64_t run_time_before) {
  constexpr uint64_t kWayBack = 500'000;
  return run_time(thread) >= run_time_before + kWayBack;
}

/// Since when it sleeps. Some do so without a beginning: a thread that the scheduler takes to another CPU while its
/// sleep is put off (delayed dequeue, Linux 6.12) has an exec_start of 0. It counts as asleep from now on: late is
/// allowed. nullopt: it was taken there just now.
std::optional<int64_t> asleep_since(const ProcDir& thread, SchedulerClock& clock) {
  const int cpu = last_cpu(thread.read("stat"));
  const auto start = parse_exec_start(thread.read("sched"));
  if (last_cpu(thread.read("stat")) != cpu) return std::nullopt;
  const auto offset = start ? clock.offset(cpu) : std::nullopt;
  return offset ? *start + *offset : monotonic_ns();
}

std::optional<SleepSample> sample_thread(const ProcDir& thread, SchedulerClock& clock) {
  const auto call = parse_syscall(thread.read("syscall"));
  if (!call) return std::nullopt;
  SleepSample s;
  s.call = *call;
  s.voluntary_switches = voluntary_switches(thread.read("status"));
  const auto since = asleep_since(thread, clock);
  if (!since) return std::nullopt;
  s.since_ns = *since;
  // restart_syscall(2) hides which call it goes on with.
  if (call->nr == SYS_restart_syscall) s.wchan = thread.read("wchan");
  // Awake in between: not one sleep.
  if (voluntary_switches(thread.read("status")) != s.voluntary_switches) return std::nullopt;
  return s;
}

/// The call that restart_syscall(2) goes on with, by the function it waits in. The kernel's restart block holds one of
/// four (nanosleep, clock_nanosleep, poll, futex); nanosleep and clock_nanosleep wait in the same function, and once
/// restarted in one that a tail call hides (seen on 6.18: "do_syscall_64").
std::optional<long> restarted_call(const SleepSample& sample, const user_regs_struct& regs) {
  if (sample.continued) return sample.continued;
  if (sample.wchan.find("poll") != std::string::npos) return SYS_poll;
  if (sample.wchan.find("futex") != std::string::npos) return SYS_futex;
  if (sample.wchan.empty() || sample.wchan == "0") return std::nullopt;  // awake, or not to be known
  // clock_nanosleep's first argument is a small clock number, nanosleep's an address.
  return regs.rdi < 4096 ? SYS_clock_nanosleep : SYS_nanosleep;
}

/// Of this task, or of another process or thread (clock_getcpuclockid(3): negative).
bool is_processor_clock(int32_t clock) {
  return clock < 0 || clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID;
}

/// Calls that return EINTR, not a restart code, when a stop wakes them (signal(7): never restarted).
bool never_restarted(uint64_t nr) {
  switch (nr) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_rt_sigtimedwait:
    case SYS_io_getevents:
    case SYS_io_pgetevents:
      return true;
    default:
      return false;
  }
}

class Converter {
 public:
  Converter(const user_regs_struct& regs, const RestartFacts& facts) : facts_(facts) {
    out_.regs = regs;
    asleep_ = facts.sample != nullptr && facts.sample->call.sp == regs.rsp && facts.sample->call.ip == regs.rip &&
              facts.sample->call.nr == static_cast<long>(regs.orig_rax) &&
              facts.voluntary_switches == facts.sample->voluntary_switches + 1;  // it woke once: for our stop
  }

  ImageRegisters convert() {
    const auto nr = static_cast<int64_t>(out_.regs.orig_rax);
    if (nr < 0) return std::move(out_);
    const auto result = static_cast<int64_t>(out_.regs.rax);
    if (result == kRestartSys || result == kRestartNoIntr || result == kRestartNoHand) {
      reissue(nr, result);
    } else if (result == kRestartBlock) {
      from_restart_block(nr);
    } else if (result == -EINTR && never_restarted(out_.regs.orig_rax) && asleep_ && !facts_.signal_pending) {
      reissue(nr, kRestartNoHand);
      shorten_wait(nr);
    }
    return std::move(out_);
  }

 private:
  void reissue(int64_t nr, int64_t code) {
    out_.regs.rax = static_cast<uint64_t>(nr);
    out_.regs.orig_rax = UINT64_MAX;
    out_.regs.rip -= kSyscallBytes;
    out_.restart.emplace();
    out_.restart->set_nr(static_cast<uint32_t>(nr));
    out_.restart->set_restart_code(static_cast<int32_t>(code));
  }

  void from_restart_block(int64_t nr) {
    if (nr == SYS_restart_syscall) {
      const auto inner = facts_.sample != nullptr ? restarted_call(*facts_.sample, out_.regs) : std::nullopt;
      if (!inner) {  // as CRIU: the call ends with EINTR
        out_.regs.rax = static_cast<uint64_t>(-EINTR);
        return;
      }
      nr = *inner;
    }
    reissue(nr, kRestartNoHand);
    shorten_wait(nr);
  }

  void shorten_wait(int64_t nr) {
    user_regs_struct& r = out_.regs;
    switch (nr) {
      // On interruption the kernel has stored the remaining time where the caller asked for it.
      case SYS_nanosleep:
        return r.rsi != 0 ? void(r.rdi = r.rsi) : timespec_argument(0, r.rdi);
      case SYS_clock_nanosleep:
        if (r.r10 != 0) return void(r.rdx = r.r10);
        // Of a clock that stands while its task does, time that has passed says nothing: the whole time again.
        return is_processor_clock(static_cast<int32_t>(r.rdi)) ? void() : timespec_argument(2, r.rdx);
      case SYS_poll:
        return milliseconds(r.rdx);
      case SYS_epoll_wait:
      case SYS_epoll_pwait:
        return milliseconds(r.r10);
      case SYS_epoll_pwait2:
      case SYS_semtimedop:
        return timespec_argument(3, r.r10);
      case SYS_rt_sigtimedwait:
        return timespec_argument(2, r.rdx);
      case SYS_io_getevents:
      case SYS_io_pgetevents:
        return timespec_argument(4, r.r8);
      case SYS_futex:
        // FUTEX_WAIT counts from now, FUTEX_WAIT_BITSET up to a point in time.
        if ((r.rsi & static_cast<uint64_t>(FUTEX_CMD_MASK)) == FUTEX_WAIT) timespec_argument(3, r.r10);
        return;
      default:
        return;
    }
  }

  /// Not known since when it slept: it waits its whole time again, never too short.
  int64_t slept_ns() const {
    if (!asleep_) return 0;
    // The scheduler's clock is not CLOCK_MONOTONIC: a little late is allowed, early is not.
    constexpr int64_t kUncertain = 10'000'000;
    return std::max<int64_t>(facts_.as_of_ns - facts_.sample->since_ns - kUncertain, 0);
  }

  void milliseconds(unsigned long long& argument) const {
    const auto timeout = static_cast<int32_t>(argument);
    if (timeout > 0) argument = static_cast<uint64_t>(std::max<int64_t>(timeout - slept_ns() / 1'000'000, 0));
  }

  void timespec_argument(uint32_t index, uint64_t address) {
    struct timespec wait {};
    if (address == 0 || ::pread(facts_.mem_fd, &wait, sizeof wait, static_cast<off_t>(address)) != sizeof wait) return;
    // The kernel took this time, but it stands in memory that may have changed since.
    constexpr int64_t kSecond = 1'000'000'000, kLongest = INT64_MAX / kSecond - 1;
    if (wait.tv_sec < 0 || wait.tv_sec > kLongest || wait.tv_nsec < 0 || wait.tv_nsec >= kSecond) return;
    const int64_t asked = wait.tv_sec * kSecond + wait.tv_nsec;
    out_.restart->set_timespec_arg(index);
    out_.restart->set_remaining_ns(static_cast<uint64_t>(std::max<int64_t>(asked - slept_ns(), 0)));
  }

  const RestartFacts& facts_;
  ImageRegisters out_;
  bool asleep_ = false;
};

}  // namespace

int64_t monotonic_ns() { return clock_ns(CLOCK_MONOTONIC); }

SleepSurvey::SleepSurvey(const std::vector<ProcDir>& tasks) {
  SchedulerClock clock;
  RunTimes ran;
  // Threads that were stopped a moment ago are on their way back into their calls: they get some more chances.
  constexpr int kTries = 9;
  constexpr timespec kBetween{0, 1'000'000};
  bool missing = true;
  for (int tries = 0; tries < kTries && missing; ++tries) {
    if (tries != 0) ::nanosleep(&kBetween, nullptr);
    missing = false;
    for (const ProcDir& task : tasks) missing |= !sample_task(task, clock, ran);
  }
}

/// Whether all its threads have a sample or are busy. One that has none waits its whole time again.
bool SleepSurvey::sample_task(const ProcDir& task, SchedulerClock& clock, RunTimes& ran) {
  bool all = true;
  try {
    for (const pid_t tid : task.threads()) {
      if (samples_.contains(tid)) continue;
      try {
        auto sample = sample_thread(task.thread(tid), clock);
        if (sample) {
          samples_.emplace(tid, std::move(*sample));
        } else {
          all &= is_busy(task.thread(tid), ran.try_emplace(tid, run_time(task.thread(tid))).first->second);
        }
      } catch (const Error&) {  // ended meanwhile, or not readable
      }
    }
  } catch (const Error&) {
  }
  return all;
}

const SleepSample* SleepSurvey::find(pid_t tid) const {
  const auto it = samples_.find(tid);
  return it == samples_.end() ? nullptr : &it->second;
}

namespace {

/// Whether a thread did nothing between two samples but be stopped, and go back to sleep. A stop is two switches, to
/// the stop and back to sleep; while it stood it may have been made to run.
bool only_stopped(pid_t tid, const SleepSample& before, const SleepSample& now, std::span<const StopMark> stops) {
  uint64_t count = before.voluntary_switches;
  bool marked = false;
  for (const StopMark& stop : stops) {
    if (stop.tid != tid) continue;
    if (stop.stopped_at != count + 1) return false;
    count = stop.let_go_at;
    marked = true;
  }
  return now.voluntary_switches == count + (marked ? 1 : 2);
}

}  // namespace

void SleepSurvey::recall(const SleepSurvey& earlier, std::span<const StopMark> stops) {
  for (auto& [tid, sample] : samples_) {
    const SleepSample* before = earlier.find(tid);
    if (sample.call.nr != SYS_restart_syscall || before == nullptr) continue;
    if (before->call.sp != sample.call.sp || before->call.ip != sample.call.ip) continue;
    // Else it may be a later call, which then ends late rather than early.
    if (!only_stopped(tid, *before, sample, stops)) continue;
    switch (before->call.nr) {
      case SYS_nanosleep:
      case SYS_clock_nanosleep:
      case SYS_poll:
      case SYS_futex:
        sample.continued = before->call.nr;
        sample.since_ns = before->since_ns;
        break;
      default:
        break;
    }
  }
}

ImageRegisters image_registers(const user_regs_struct& regs, const RestartFacts& facts) {
  return Converter(regs, facts).convert();
}

}  // namespace migrate
