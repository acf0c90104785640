// Threads that were stopped inside a system call: the registers that make a restored thread go on with it, with what is
// left of its time. Nothing here touches a thread; the source goes on by the kernel's own restart.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/procfs.h"
#include "core/freeze/stopped_tree.h"
#include "core/task/proc_text.h"
#include "ext/ext.pb.h"

namespace migrate {

/// Since when, and in which call, a thread was asleep. Taken while it runs: stopping it overwrites both.
struct SleepSample {
  BlockedCall call;
  std::string wchan;              ///< the kernel function it waits in
  std::optional<long> continued;  ///< the call that restart_syscall(2) goes on with, if that was seen
  uint64_t voluntary_switches = 0;
  int64_t since_ns = 0;  ///< CLOCK_MONOTONIC of the reader
};

/// A stop between two surveys, as a visit is one: a thread's voluntary switches when it stood, and when it was let go.
struct StopMark {
  pid_t tid = 0;
  uint64_t stopped_at = 0, let_go_at = 0;
};

/// "voluntary_ctxt_switches" of /proc/TID/status.
uint64_t voluntary_switches(std::string_view status);

class SchedulerClock;

/// Sleep samples of all threads of running tasks.
class SleepSurvey {
 public:
  SleepSurvey() = default;
  explicit SleepSurvey(const std::vector<ProcDir>& tasks);
  const SleepSample* find(pid_t tid) const;
  /// Adds what `earlier`, taken before a stop in between, knew about calls that go on since: which they are and when
  /// they began. Stopping a thread hides both. `stops`: marks of threads that were made to run meanwhile, in order; of
  /// all others a single stop is assumed.
  void recall(const SleepSurvey& earlier, std::span<const StopMark> stops = {});

 private:
  /// Nanoseconds that threads without a sample had run when they were first seen.
  using RunTimes = std::map<pid_t, uint64_t>;
  bool sample_task(const ProcDir& task, SchedulerClock& clock, RunTimes& ran);

  std::map<pid_t, SleepSample> samples_;
};

struct ImageRegisters {
  user_regs_struct regs{};  ///< a call is issued again, as in CRIU's images
  std::optional<ext::RestartCall> restart;
};

/// What decides about a restart, besides the registers.
struct RestartFacts {
  const SleepSample* sample = nullptr;  ///< of this thread, from before the stop
  uint64_t voluntary_switches = 0;      ///< now
  bool signal_pending = false;          ///< an unblocked signal waits for the thread
  int64_t as_of_ns = 0;                 ///< CLOCK_MONOTONIC: what is left is told as of this moment
  int mem_fd = -1;                      ///< /proc/PID/mem
};

ImageRegisters image_registers(const user_regs_struct& regs, const RestartFacts& facts);

/// CLOCK_MONOTONIC of the caller, ns.
int64_t monotonic_ns();

}  // namespace migrate
