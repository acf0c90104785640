#include "core/inject/vdso_exit.h"

#include <sys/ptrace.h>

#include <csignal>

#include "core/base/proc_values.h"
#include "core/freeze/tracee.h"

namespace migrate {
namespace {

/// The longest way through it (getrandom(3)) has some thousand instructions.
constexpr int kMostSteps = 10'000;
constexpr uint64_t kTrap = uint64_t{1} << (SIGTRAP - 1);

/// The kernel makes an ignored SIGTRAP a fatal one when it tells of a step.
bool ignores_traps(const ProcDir& task) {
  const auto status = task.status();
  const auto ignored = status.find("SigIgn");
  return ignored == status.end() || (parse_number(ignored->second, "/proc/PID/status: SigIgn", 16) & kTrap) != 0;
}

/// False: it has ended, or stopped for another reason.
bool step(Tid tid, const Deadline& deadline) {
  if (!tracee::resume(tid, PTRACE_SINGLESTEP)) return false;
  const auto stop = tracee::wait(tid, deadline);
  return stop && stop->signal_delivery() && stop->signal() == SIGTRAP;
}

}  // namespace

void leave_vdso(const ProcDir& task, RemoteRange vdso, StoppedThread& thread) {
  const auto inside = [&](const user_regs_struct& regs) { return vdso.contains(RemoteAddr(regs.rip)); };
  const bool in_call = static_cast<int64_t>(thread.regs.orig_rax) >= 0;
  const bool steps_itself = (thread.regs.eflags & tracee::kTrapFlag) != 0;
  if (!inside(thread.regs) || in_call || steps_itself || ignores_traps(task)) return;
  const Deadline deadline = Deadline::in(std::chrono::seconds(2));
  tracee::set_signal_mask(thread.tid, ~kTrap);
  for (int steps = 0; steps < kMostSteps && step(thread.tid, deadline); ++steps)
    if (!inside(tracee::registers(thread.tid))) break;
  if (tracee::to_event_stop(thread.tid, false, deadline).ended)
    throw Error("step", "thread " + std::to_string(thread.tid.get()) + " out of its vdso", ESRCH);
  tracee::set_signal_mask(thread.tid, thread.sigmask);
  thread.regs = tracee::registers(thread.tid);
  thread.xsave = tracee::xsave(thread.tid);
}

}  // namespace migrate
