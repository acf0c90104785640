#include "core/freeze/stopped_tree.h"

#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "core/freeze/stopped_tree_impl.h"

namespace migrate {
namespace {

bool is_ancestor_or_self(pid_t pid) {
  for (pid_t p = ::getpid(); p > 0;) {
    if (p == pid) return true;
    try {
      p = ProcDir(p).stat().ppid;
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
      return false;
    }
  }
  return false;
}

/// -1, 0, 1: an order by which tasks that share the resource are equal.
int compare_resource(pid_t a, pid_t b, int type) {
  const long r = ::syscall(SYS_kcmp, a, b, type, 0, 0);
  return r == 0 ? 0 : r == 1 ? -1 : 1;
}

void refuse_sharing(std::vector<pid_t> pids, int type, const char* what) {
  std::sort(pids.begin(), pids.end(), [&](pid_t a, pid_t b) { return compare_resource(a, b, type) < 0; });
  const auto twin =
      std::adjacent_find(pids.begin(), pids.end(), [&](pid_t a, pid_t b) { return compare_resource(a, b, type) == 0; });
  if (twin == pids.end()) return;
  throw Refusal(task_name(twin[0]) + " and task " + std::to_string(twin[1]) + " share " + what +
                    " without being threads of one process",
                "try again when they no longer do (after vfork this ends with exec)");
}

}  // namespace

std::string task_name(pid_t pid) { return "task " + std::to_string(pid); }

std::vector<pid_t> threads_of(const ProcDir& proc) {
  try {
    return proc.threads();
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return {};
  }
}

std::optional<ProcStat> stat_of(const ProcDir& proc) {
  try {
    return proc.stat();
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return std::nullopt;
  }
}

std::optional<int> exit_of(const ProcDir& proc) {
  const auto dead = [&] {
    const auto stat = stat_of(proc);
    return !stat                                      ? std::optional(0)
           : stat->state == 'Z' || stat->state == 'X' ? std::optional(stat->exit_code)
                                                      : std::nullopt;
  };
  if (!dead() || threads_of(proc).size() > 1) return std::nullopt;
  return dead();
}

// Level by level, a level's children listed when all of it has stopped: a stopped thread cannot fork, and the child of
// a vfork(2) must not be stopped before its parent, which does not stop until that child executes a program or ends.
// Then in passes over all, until one finds nothing new.
void StoppedTree::Impl::stop_all(Pid root) {
  const Deadline deadline = Deadline::in(options.timeout);
  if (!add_task(root.get(), 0, deadline)) throw Error("stop", task_name(root.get()), ESRCH);
  if (tasks.front().state == TaskState::zombie) throw Error(task_name(root.get()) + " has ended already");
  for (const Pid other : options.others) add_task(other.get(), 0, deadline);
  for (size_t level = 0; level < tasks.size();) {
    const size_t end = tasks.size();
    while (stop_threads(level, deadline)) {
    }
    if (options.descendants) add_children(level, deadline);
    level = end;
  }
  for (bool found = true; found;) {
    found = stop_threads(0, deadline);
    if (!found && options.descendants) found = add_children(0, deadline);
    if (!found) found = has_new_leader(deadline);
  }
  reaper.reset();
  drop_ended_tasks();
  read_threads();
  std::vector<pid_t> living;
  for (const StoppedTask& task : tasks) {
    if (task.state != TaskState::zombie) living.push_back(task.pid.get());
  }
  refuse_sharing(living, KCMP_VM, "their memory");
  refuse_sharing(living, KCMP_FS, "their working directory and umask");
  refuse_sharing(living, KCMP_FILES, "their descriptor table");
}

bool StoppedTree::Impl::add_task(pid_t pid, pid_t parent, const Deadline& deadline) {
  if (!known.insert(pid).second) return false;
  auto pidfd = open_pidfd(pid);
  std::optional<ProcDir> proc;
  try {
    proc.emplace(pid);
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return false;
  }
  const auto stat = stat_of(*proc);
  if (!pidfd || !stat) return false;
  StoppedTask task{.pid = Pid(pid),
                   .parent = Pid(parent == 0 ? stat->ppid : parent),
                   .pgid = Pid(stat->pgid),
                   .sid = Pid(stat->sid),
                   .pidfd = std::move(*pidfd),
                   .proc = std::move(*proc),
                   .threads = {}};
  if (const auto exit_code = exit_of(task.proc)) {
    task.state = TaskState::zombie;
    task.exit_code = *exit_code;
  } else if (!options.thaw) {  // one that is frozen looks like that
    wait_out_of_disk_sleep(task, deadline);
  }
  tasks.push_back(std::move(task));
  return true;
}

// A seized thread that does not stop cannot be let go either: so see that it can before it is seized.
void StoppedTree::Impl::wait_out_of_disk_sleep(const StoppedTask& task, const Deadline& deadline) {
  for (;;) {
    const auto stat = stat_of(task.proc);
    if (!stat || stat->state != 'D') return;
    if (deadline.passed()) {
      throw Refusal(task_name(task.pid.get()) + " (" + stat->comm + ") is in an uninterruptible sleep",
                    "wait until its input or output is done, then try again");
    }
    ::usleep(1000);
  }
}

bool StoppedTree::Impl::stop_threads(size_t first, const Deadline& deadline) {
  bool found = false;
  for (size_t i = first; i < tasks.size(); ++i) found |= seize_new_threads(tasks[i], deadline);
  if (const auto thaw = std::exchange(options.thaw, {})) thaw();
  collect_stops(deadline);
  return found;
}

bool StoppedTree::Impl::add_children(size_t first, const Deadline& deadline) {
  bool found = false;
  for (size_t i = first, end = tasks.size(); i < end; ++i) {
    if (tasks[i].state == TaskState::zombie) continue;
    std::vector<pid_t> children;
    try {
      children = tasks[i].proc.children();
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
      continue;
    }
    for (const pid_t child : children) found |= add_task(child, tasks[i].pid.get(), deadline);
  }
  return found;
}

/// A task that died while we stopped the others is a zombie of its parent now, or gone.
void StoppedTree::Impl::drop_ended_tasks() {
  std::erase_if(tasks, [&](StoppedTask& task) {
    const auto stat = stat_of(task.proc);
    if (!stat || stat->state == 'X') return true;
    if (stat->state == 'Z' && task.state != TaskState::zombie) {
      task.state = TaskState::zombie;
      task.exit_code = stat->exit_code;
    }
    return false;
  });
  if (tasks.empty() || tasks.front().state == TaskState::zombie)
    throw Error("the root task ended while it was stopped");
}

void StoppedTree::Impl::detach() {
  if (detached) return;
  detached = true;
  for (const auto& [tid, state] : threads) {
    if (state == ThreadState::ended) continue;
    if (state == ThreadState::running) {
      // Only a stopped thread can be detached. One that does not stop is let go when our thread ends.
      try {
        collect_stop(tid, Deadline::in(std::chrono::seconds(2)));
      } catch (const Error& e) {
        log.warn("{}", e.what());
      }
    }
    if (!tracee::resume(Tid(tid), PTRACE_DETACH) && tid != task_of[tid]) reap_thread(tid);
  }
}

StoppedTree::StoppedTree(Pid root, const Options& options, Logger& log) : impl_(std::make_unique<Impl>(options, log)) {
  if (is_ancestor_or_self(root.get())) {
    throw Refusal(task_name(root.get()) + " is this program or one that it was started from",
                  "start migrate from outside of the tree");
  }
  impl_->stop_all(root);
}

StoppedTree::StoppedTree(StoppedTree&&) noexcept = default;
StoppedTree::~StoppedTree() = default;

std::vector<StoppedTask>& StoppedTree::tasks() { return impl_->tasks; }
const std::vector<StoppedTask>& StoppedTree::tasks() const { return impl_->tasks; }

void StoppedTree::kill() {
  const Deadline deadline = Deadline::in(impl_->options.timeout);
  for (const StoppedTask& task : impl_->tasks) {
    ::syscall(SYS_pidfd_send_signal, task.pidfd.get(), SIGKILL, nullptr, 0);
  }
  impl_->detached = true;
  // A tracer is told of each thread's death first; only then its parent is. Leaders last: they wait for their threads.
  const auto reap = [&](pid_t tid) {
    for (;;) {
      const auto stop = tracee::wait(Tid(tid), deadline);
      if (!stop) throw Error("thread " + std::to_string(tid) + " does not die of SIGKILL");
      if (stop->ended) return;
    }
  };
  for (const auto& [tid, state] : impl_->threads) {
    if (state != Impl::ThreadState::ended && impl_->task_of[tid] != tid) reap(tid);
  }
  // Children before parents, so that what is ours to reap after reparenting shows up in time.
  for (auto task = impl_->tasks.rbegin(); task != impl_->tasks.rend(); ++task) {
    if (task->state != TaskState::zombie) reap(task->pid.get());
  }
  impl_->tasks.clear();
  impl_->threads.clear();
}

void StoppedTree::release(bool leave_stopped) {
  if (leave_stopped) {
    for (const StoppedTask& task : impl_->tasks) {
      if (task.state == TaskState::running) {
        ::syscall(SYS_pidfd_send_signal, task.pidfd.get(), SIGSTOP, nullptr, 0);
      }
    }
  }
  impl_->detach();
  impl_->tasks.clear();
}

}  // namespace migrate
