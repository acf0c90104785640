#include "core/restore/group_stop.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>

#include "core/base/fd.h"
#include "core/freeze/tracee.h"

namespace migrate {
namespace {

constexpr uint64_t kSigsetBytes = 8;

std::string task_title(const TaskImage& task) { return "task " + std::to_string(task.pid); }

constexpr uint64_t bit_of(int signal) { return uint64_t{1} << (signal - 1); }

/// The signal of its image, if it is one that stops a task which does nothing about it.
int stop_signal(const TaskImage& task) {
  const auto signal = static_cast<int>(task.core().tc().stop_signo());
  if (signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU) return SIGSTOP;
  // Images leave out SIGKILL and SIGSTOP.
  const auto& actions = task.core().tc().sigactions();
  const int index = signal - 3;
  const bool usual = index < actions.size() && actions[index].sigaction() == 0;
  return usual ? signal : SIGSTOP;
}

/// Lets the leader, which is in an event stop, take the signal. Whether that has stopped it.
bool take(const TaskImage& task, int signal, const Deadline& deadline) {
  const Tid leader(task.pid);
  const uint64_t mask = tracee::signal_mask(leader);
  tracee::set_signal_mask(leader, ~bit_of(signal));
  check(::syscall(SYS_tgkill, task.pid, task.pid, signal), "stop", task_title(task));
  if (!tracee::resume(leader, PTRACE_CONT)) throw Error("stop", task_title(task), ESRCH);
  const auto delivery = tracee::wait(leader, deadline);
  if (!delivery || delivery->ended) throw Error("stop", task_title(task), delivery ? ESRCH : ETIMEDOUT);
  if (delivery->signal_delivery()) {
    tracee::interrupt(leader);
    tracee::resume(leader, PTRACE_CONT, delivery->signal());
  }
  tracee::Stop stop = *delivery;
  while (!stop.event_stop()) {
    const auto next = tracee::wait(leader, deadline);
    if (!next || next->ended) throw Error("stop", task_title(task), next ? ESRCH : ETIMEDOUT);
    stop = *next;
    if (!stop.event_stop()) tracee::resume(leader, PTRACE_CONT, stop.signal());
  }
  tracee::set_signal_mask(leader, mask);
  return stop.group_stop_signal() == signal;
}

bool has_pending(const img::signal_queue_entry& queue, int signal) {
  return std::ranges::any_of(queue.signals(), [&](const img::siginfo_entry& e) {
    int32_t number = 0;
    if (e.siginfo().size() < sizeof number) return false;
    std::memcpy(&number, e.siginfo().data(), sizeof number);  // si_signo stands first
    return number == signal;
  });
}

}  // namespace

void stop_group(const TaskImage& task, std::chrono::milliseconds timeout) {
  const Deadline deadline = Deadline::in(timeout);
  const Tid leader(task.pid);
  // The others run meanwhile: only so they take part in the stop.
  if (tracee::to_event_stop(leader, true, deadline).ended) throw Error("stop", task_title(task), ESRCH);
  const int signal = stop_signal(task);
  if (!take(task, signal, deadline) && (signal == SIGSTOP || !take(task, SIGSTOP, deadline)))
    throw Error(task_title(task) + " cannot be stopped");
}

void collect_stops(const TaskImage& parent, const std::vector<pid_t>& stopped_children, RemoteCalls& leader, int mem,
                   uint64_t scratch) {
  if (stopped_children.empty()) return;
  for (const pid_t child : stopped_children)
    if (child > 0) leader.call(SYS_waitid, {P_PID, static_cast<uint64_t>(child), 0, WSTOPPED | WNOHANG | __WALL, 0});
  const img::core_entry& core = parent.core();
  if (has_pending(core.tc().signals_s(), SIGCHLD) || has_pending(core.thread_core().signals_p(), SIGCHLD)) return;
  struct {
    uint64_t set;
    timespec none;
  } const wait{bit_of(SIGCHLD), {}};
  pwrite_full(mem, std::as_bytes(std::span(&wait, 1)), scratch, task_title(parent));
  leader.call(SYS_rt_sigtimedwait, {scratch, 0, scratch + sizeof wait.set, kSigsetBytes});
}

}  // namespace migrate
