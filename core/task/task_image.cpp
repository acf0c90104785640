#include <algorithm>

#include "core/base/clock.h"
#include "core/base/time_left.h"
#include "core/task/core_image.h"
#include "core/task/signal_queue.h"

namespace migrate {
namespace {

// CRIU's task states.
constexpr uint32_t kAlive = 1, kStopped = 3, kZombie = 6;
constexpr int kLastSignal = 64, kSigKill = 9, kSigStop = 19;

void fill_interval(const itimerval& timer, img::itimer_entry& out) {
  out.set_isec(static_cast<uint64_t>(timer.it_interval.tv_sec));
  out.set_iusec(static_cast<uint64_t>(timer.it_interval.tv_usec));
  out.set_vsec(static_cast<uint64_t>(timer.it_value.tv_sec));
  out.set_vusec(static_cast<uint64_t>(timer.it_value.tv_usec));
}

void fill_posix_timer(const PosixTimer& timer, const TimerHarvest& state, const StoppedTask& task,
                      const ImagePids& pids, img::posix_timer_entry& out) {
  constexpr int kThreadId = 4;  // SIGEV_THREAD_ID
  out.set_it_id(static_cast<uint32_t>(timer.id));
  out.set_clock_id(static_cast<uint32_t>(timer.clock));
  out.set_si_signo(static_cast<uint32_t>(timer.signal));
  out.set_it_sigev_notify(static_cast<uint32_t>(timer.notify));
  out.set_sival_ptr(timer.sigval);
  out.set_overrun(static_cast<uint32_t>(state.overrun));
  out.set_isec(static_cast<uint64_t>(state.value.it_interval.tv_sec));
  out.set_insec(static_cast<uint64_t>(state.value.it_interval.tv_nsec));
  out.set_vsec(static_cast<uint64_t>(state.value.it_value.tv_sec));
  out.set_vnsec(static_cast<uint64_t>(state.value.it_value.tv_nsec));
  if ((timer.notify & kThreadId) != 0) {
    const pid_t target = pids.of(timer.target);
    if (target == 0)
      throw Refusal("task " + std::to_string(task.pid.get()) + " has timer " + std::to_string(timer.id) +
                        ", which signals thread " + std::to_string(timer.target) + " outside the tree",
                    "delete the timer first");
    out.set_notify_thread_id(target);
  }
}

void fill_timers(const StoppedTask& task, const TaskHarvest& harvest, const std::vector<PosixTimer>& timers,
                 const ImagePids& pids, img::task_timers_entry& out) {
  fill_interval(harvest.itimers[0], *out.mutable_real());
  fill_interval(harvest.itimers[1], *out.mutable_virt());
  fill_interval(harvest.itimers[2], *out.mutable_prof());
  for (const PosixTimer& timer : timers) {
    const TimerHarvest* state = nullptr;
    for (const TimerHarvest& t : harvest.posix_timers)
      if (t.id == timer.id) state = &t;
    if (state == nullptr)
      throw Error("read timer " + std::to_string(timer.id) + " of", "task " + std::to_string(task.pid.get()), ESRCH);
    fill_posix_timer(timer, *state, task, pids, *out.add_posix());
  }
}

/// All but those of KILL and STOP, in the order of signals.
void fill_dispositions(const TaskHarvest& harvest, img::task_core_entry& out) {
  for (int signal = 1; signal <= kLastSignal; ++signal) {
    if (signal == kSigKill || signal == kSigStop) continue;
    const KernelSigaction& action = harvest.sigactions[static_cast<size_t>(signal - 1)];
    img::sa_entry& entry = *out.add_sigactions();
    entry.set_sigaction(action.handler);
    entry.set_flags(action.flags);
    entry.set_restorer(action.restorer);
    entry.set_mask(action.mask);
    entry.set_compat_sigaction(false);
  }
}

}  // namespace

ImagePids::ImagePids(const std::vector<StoppedTask>& tasks) {
  const auto depth = [](const std::string& list) {
    return parse_numbers<pid_t>(list, "/proc/PID/status: NSpid").size();
  };
  size_t levels = 0;
  for (const StoppedTask& task : tasks) {
    const auto status = task.proc.status();
    const auto it = status.find("NSpid");
    const std::string list = it == status.end() ? std::to_string(task.pid.get()) : it->second;
    if (levels == 0) levels = depth(list);
    if (depth(list) != levels)
      throw Refusal("task " + std::to_string(task.pid.get()) + " is in another pid namespace than the root of its tree",
                    "trees that span pid namespaces cannot be moved yet");
    numbers_[task.pid.get()] = innermost(list);
    for (const StoppedThread& thread : task.threads) {
      if (thread.tid.get() == task.pid.get()) continue;
      numbers_[thread.tid.get()] =
          levels == 1 ? thread.tid.get() : innermost(task.proc.thread(thread.tid.get()).status()["NSpid"]);
    }
  }
}

pid_t ImagePids::of(pid_t pid) const {
  const auto it = numbers_.find(pid);
  return it == numbers_.end() ? 0 : it->second;
}

void count_back(TaskHarvest& harvest, const std::vector<PosixTimer>& timers, int64_t ago_ns) {
  constexpr long kNsPerUs = 1000;
  timeval& real = harvest.itimers[0].it_value;
  const timespec left = time_left_then({real.tv_sec, real.tv_usec * kNsPerUs}, ago_ns + harvest.itimers_read_ns);
  real = {left.tv_sec, left.tv_nsec / kNsPerUs};
  for (TimerHarvest& timer : harvest.posix_timers) {
    const auto listed = std::ranges::find(timers, timer.id, &PosixTimer::id);
    if (listed == timers.end() || is_processor_time(listed->clock)) continue;
    timer.value.it_value = time_left_then(timer.value.it_value, ago_ns + timer.read_ns);
  }
}

void describe_task(const StoppedTask& task, const TaskHarvest& harvest, const std::vector<PosixTimer>& timers,
                   const ImagePids& pids, img::core_entry& core) {
  img::task_core_entry& out = *core.mutable_tc();
  const ProcStat stat = task.proc.stat();
  out.set_task_state(task.state == TaskState::group_stopped ? kStopped : kAlive);
  out.set_exit_code(0);
  out.set_personality(parse_number<uint32_t>(task.proc.read("personality"), "/proc/PID/personality", 16));
  out.set_flags(stat.flags);
  out.set_blk_sigset(task.threads.front().sigmask);
  out.set_comm(stat.comm);
  fill_timers(task, harvest, timers, pids, *out.mutable_timers());
  for (const Rlimit& limit : parse_limits(task.proc.read("limits"))) {
    img::rlimit_entry& entry = *out.mutable_rlimits()->add_rlimits();
    entry.set_cur(limit.cur);
    entry.set_max(limit.max);
  }
  out.set_cg_set(1);
  read_signal_queue(task.threads.front().tid, true, *out.mutable_signals_s());
  try {
    out.set_loginuid(parse_number<uint32_t>(task.proc.read("loginuid"), "/proc/PID/loginuid"));
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;  // kernels without auditing have none
  }
  out.set_oom_score_adj(parse_number<int32_t>(task.proc.read("oom_score_adj"), "/proc/PID/oom_score_adj"));
  fill_dispositions(harvest, out);
  out.set_child_subreaper(harvest.child_subreaper != 0);
  if (task.state == TaskState::group_stopped) out.set_stop_signo(static_cast<uint32_t>(task.stop_signal));
  if (harvest.membarrier_registrations > 0)
    out.set_membarrier_registration_mask(static_cast<uint32_t>(harvest.membarrier_registrations));
}

ext::ThreadExt describe_ended(const StoppedTask& task, pid_t image_pid) {
  ext::ThreadExt extras;
  extras.set_tid(static_cast<uint32_t>(image_pid));
  if (const int signal = task.proc.stat().exit_signal; signal != SIGCHLD)
    extras.mutable_task()->set_exit_signal(static_cast<uint32_t>(signal));
  const StatusFields status = task.proc.status();
  const auto real = [&](const char* key) {
    const std::string ids = status_field(status, key);
    return parse_number<uint32_t>(ids.substr(0, ids.find('\t')), std::string("/proc/PID/status: ") + key);
  };
  extras.mutable_task()->set_uid(real("Uid"));
  extras.mutable_task()->set_gid(real("Gid"));
  return extras;
}

void describe_zombie(const StoppedTask& task, img::core_entry& core) {
  core.set_mtype(img::core_entry::X86_64);
  img::task_core_entry& out = *core.mutable_tc();
  out.set_task_state(kZombie);
  out.set_exit_code(static_cast<uint32_t>(task.exit_code));
  out.set_personality(0);
  out.set_flags(0);
  out.set_blk_sigset(0);
  out.set_comm(task.proc.stat().comm);
}

}  // namespace migrate
