// The threads of a tree that is being stopped: seized, waited for, and those that change their numbers by executing
// programs.
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "core/freeze/stopped_tree_impl.h"
#include "core/freeze/traced_by.h"

namespace migrate {
namespace {

// Restart codes of the kernel (include/linux/errno.h), seen in rax of a call that was interrupted.
constexpr int64_t kErestartnohand = -514;
/// In all, of leaders that live: others are refused by the kernel each time.
constexpr int kFailedSeizes = 50;
/// While a thread does not stop.
constexpr std::chrono::milliseconds kReapEvery{20};

std::optional<ProcStat> stat_of_thread(const ProcDir& task, pid_t tid) {
  try {
    return task.thread(tid).stat();
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return std::nullopt;
  }
}

/// Whether the thread that has this number now is our tracee. One that executes a program takes the leader's number and
/// stays traced, or not traced, as it was (ptrace(2), "execve(2) under ptrace").
bool is_our_tracee(pid_t tid) {
  try {
    const auto status = ProcDir(tid).status();
    const auto tracer = status.find("TracerPid");
    return tracer != status.end() && tracer->second == std::to_string(::gettid());
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return false;
  }
}

/// "state D in wait_for_vfork_done": for people.
std::string where_it_is(pid_t tid) {
  try {
    const ProcDir thread(tid);
    return std::string("state ") + thread.stat().state + " in " + thread.read("wchan");
  } catch (const Error&) {
    return "it has ended";
  }
}

/// Calls that answer EINTR to any interruption although no handler runs, and wait without a time limit: for them
/// "restart unless a handler ran" is exactly "not interrupted". (With a time limit the rest of it is not known.)
bool waits_forever_with_eintr(const user_regs_struct& r) {
  if (static_cast<int64_t>(r.rax) != -EINTR) return false;
  switch (static_cast<int64_t>(r.orig_rax)) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
      return static_cast<int32_t>(r.r10) == -1;
    case SYS_epoll_pwait2:
    case SYS_semtimedop:
      return r.r10 == 0;
    case SYS_rt_sigtimedwait:
      return r.rdx == 0;
    case SYS_semop:
      return true;
    default:
      return false;
  }
}

}  // namespace

bool StoppedTree::Impl::seize_new_threads(StoppedTask& task, const Deadline& deadline) {
  if (task.state == TaskState::zombie) return false;
  bool found = false, leader_dead = false;
  const std::vector<pid_t> tids = threads_of(task.proc);
  if (tids.size() > 1 && !reaper) reaper.emplace();
  const ExitReaper::Watch watch(tids.size() > 1 ? &*reaper : nullptr);
  for (const pid_t tid : tids) {
    const bool leader = tid == task.pid.get();
    const auto seen = threads.find(tid);
    // A leader that ended comes back when another thread executes a program: under its number, and still seized.
    if (seen != threads.end() && !(leader && seen->second == ThreadState::ended)) continue;
    const int err = tracee::seize(Tid(tid), options.suspend_seccomp);
    if (err == ESRCH) continue;
    if (err != 0 && !(leader && is_our_tracee(tid))) {
      const auto stat = stat_of_thread(task.proc, tid);
      const bool dead = !stat || stat->state == 'Z' || stat->state == 'X';
      if (!dead) {
        // Perhaps it was dead when it was seized, and another thread has its number now: over at the next look.
        if (!leader || ++failed_seizes > kFailedSeizes) explain_seize_failure(task, tid, err);
        ::usleep(100);
        found = true;
        continue;
      }
      const auto exit_code = leader && tids.size() == 1 ? exit_of(task.proc) : std::nullopt;
      if (exit_code) {
        task.state = TaskState::zombie;
        task.exit_code = *exit_code;
        return true;
      }
      leader_dead |= leader;
      continue;
    }
    if (reaper) reaper->add(tid);
    threads[tid] = ThreadState::running;
    task_of[tid] = task.pid.get();
    tracee::interrupt(Tid(tid));
    found = true;
  }
  return found || (leader_dead && !has_lost_leader(task, tids, deadline));
}

/// Whether a task whose leader is dead stays so. If not, another thread executes a program, or all are ending: such a
/// thread does not stop before that is over, so it is when all others have stopped.
bool StoppedTree::Impl::has_lost_leader(const StoppedTask& task, const std::vector<pid_t>& tids,
                                        const Deadline& deadline) {
  look_at_threads();
  const bool all_stopped = std::all_of(tids.begin(), tids.end(), [&](pid_t tid) {
    const auto thread = threads.find(tid);
    return tid == task.pid.get() || (thread != threads.end() && thread->second == ThreadState::stopped);
  });
  const auto stat = stat_of(task.proc);
  if (stat && stat->state == 'Z' && (all_stopped || deadline.passed()))
    explain_seize_failure(task, task.pid.get(), EPERM);
  ::usleep(1000);
  return false;
}

void StoppedTree::Impl::explain_seize_failure(const StoppedTask& task, pid_t tid, int err) {
  const std::string who = task_name(task.pid.get());
  const auto stat = stat_of(task.proc);
  if (stat && stat->state == 'Z') {
    throw Refusal(who + " (" + stat->comm + ") has ended its main thread while others run",
                  "such a program cannot be moved");
  }
  const auto status = task.proc.status();
  const auto tracer = status.find("TracerPid");
  if (tracer != status.end() && tracer->second != "0") {
    throw traced_by(who, tracer->second);
  }
  const auto kthread = status.find("Kthread");
  if ((kthread != status.end() && kthread->second == "1") || !status.contains("VmSize")) {
    throw Refusal(who + " is a kernel thread", "name a program instead");
  }
  throw Error("seize", "thread " + std::to_string(tid) + " of " + who, err);
}

void StoppedTree::Impl::collect_stops(const Deadline& deadline) {
  const auto running = [&] {
    return std::find_if(threads.begin(), threads.end(),
                        [](const auto& thread) { return thread.second == ThreadState::running; });
  };
  for (auto next = running(); next != threads.end(); next = running()) {
    const pid_t tid = next->first, leader = task_of[tid];
    collect_stop(tid, deadline);
    if (threads[tid] == ThreadState::ended && tid != leader) look_at_leader(leader);
  }
}

/// A thread that executes a program gives up its number for the leader's, which had perhaps stopped already: what has
/// that number now is another thread, seized as well, that is yet to stop.
void StoppedTree::Impl::look_at_leader(pid_t leader) {
  const auto state = threads.find(leader);
  if (state == threads.end() || state->second != ThreadState::stopped) return;
  const auto stop = tracee::poll(Tid(leader));
  if (!stop) {
    const auto task = std::find_if(tasks.begin(), tasks.end(), [&](const auto& t) { return t.pid.get() == leader; });
    const auto stat = stat_of(task->proc);
    if (stat && stat->state == 't') return;
  }
  state->second = ThreadState::running;
  tracee::interrupt(Tid(leader));
  if (stop) take_stop(leader, *stop);
}

void StoppedTree::Impl::collect_stop(pid_t tid, const Deadline& deadline) {
  while (threads[tid] == ThreadState::running) {
    if (const auto stop = tracee::wait(Tid(tid), Deadline::in(kReapEvery))) {
      take_stop(tid, *stop);
    } else if (!is_our_tracee(tid)) {
      threads[tid] = ThreadState::ended;  // if it is our child, wait(2) does not say so
    } else if (!deadline.passed()) {
      look_at_threads();
    } else {
      throw Refusal("thread " + std::to_string(tid) + " of " + task_name(task_of[tid]) + " does not stop (" +
                        where_it_is(tid) + "; it may be in an uninterruptible sleep)",
                    "try again when its input or output is done");
    }
  }
}

/// What a running thread reports.
void StoppedTree::Impl::take_stop(pid_t tid, const tracee::Stop& stop) {
  if (stop.ended) {
    threads[tid] = ThreadState::ended;
  } else if (stop.event_stop()) {
    if (const int signal = stop.group_stop_signal()) stop_signals[task_of[tid]] = signal;
    threads[tid] = ThreadState::stopped;
  } else {
    // A signal came first: it is delivered (its frame is built), and the thread stops before the handler's first
    // instruction. The interrupt has to be set before it is continued, and again since any stop clears it.
    tracee::interrupt(Tid(tid));
    tracee::resume(Tid(tid), PTRACE_CONT, stop.signal_delivery() ? stop.signal() : 0);
  }
}

// A thread that executes a program waits until all others of its task, which it has killed, were waited for by us.
void StoppedTree::Impl::look_at_threads() {
  for (auto& [tid, state] : threads) {
    if (state == ThreadState::ended) continue;
    const auto stop = tracee::poll(Tid(tid));
    if (!stop) continue;
    state = ThreadState::running;  // if it had stopped, another thread has its number now
    take_stop(tid, *stop);
  }
}

/// Whether a thread that we had not seized has executed a program since, and now has the number of a leader that had
/// stopped: it is to be stopped too. All other threads of that task have ended.
bool StoppedTree::Impl::has_new_leader(const Deadline& deadline) {
  bool found = false;
  for (const StoppedTask& task : tasks) {
    const pid_t pid = task.pid.get();
    const auto stat = task.state == TaskState::zombie ? std::nullopt : stat_of(task.proc);
    if (!stat || stat->state == 'Z' || stat->state == 'X') continue;  // it ended
    ThreadState& leader = threads[pid];
    if (stat->state == 't' && leader == ThreadState::stopped) continue;
    if (deadline.passed())
      throw Refusal(task_name(pid) + " executes programs all the time", "try again when it no longer does");
    found = true;
    leader = is_our_tracee(pid) ? ThreadState::running : ThreadState::ended;
    if (leader == ThreadState::running) tracee::interrupt(Tid(pid));
    ::usleep(100);
  }
  return found;
}

void StoppedTree::Impl::read_threads() {
  for (StoppedTask& task : tasks) {
    if (task.state == TaskState::zombie) continue;
    if (const auto signal = stop_signals.find(task.pid.get()); signal != stop_signals.end()) {
      task.state = TaskState::group_stopped;
      task.stop_signal = signal->second;
    }
    for (const pid_t number : threads_of(task.proc)) {
      const auto known_thread = threads.find(number);
      if (known_thread == threads.end() || known_thread->second != ThreadState::stopped) continue;
      StoppedThread thread{.tid = Tid(number), .xsave = {}};
      thread.regs = tracee::registers(thread.tid);
      if (waits_forever_with_eintr(thread.regs)) {
        thread.regs.rax = static_cast<uint64_t>(kErestartnohand);
        tracee::set_registers(thread.tid, thread.regs);
      }
      thread.sigmask = tracee::signal_mask(thread.tid);
      thread.xsave = tracee::xsave(thread.tid);
      task.threads.push_back(std::move(thread));
    }
  }
}

/// One that was killed while it was stopped: it, and so its task, stays until its tracer has waited for it.
void StoppedTree::Impl::reap_thread(pid_t tid) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(2));
  for (auto stop = tracee::wait(Tid(tid), deadline); stop && !stop->ended; stop = tracee::wait(Tid(tid), deadline))
    tracee::resume(Tid(tid), PTRACE_DETACH);
}

}  // namespace migrate
