// Stopping a process tree with ptrace: every thread of every task is seized and stopped, none escapes by forking.
//
// The thread that makes a StoppedTree is the tracer of all of it: every call on it must come from that thread
// (ptrace(2)). Destroying a StoppedTree detaches: tasks run on exactly where they were (group-stopped ones stay
// stopped). If our process dies the kernel detaches, with the same result, as long as no registers were borrowed.
#pragma once

#include <sys/user.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/base/procfs.h"
#include "core/base/types.h"

namespace migrate {

/// A ptrace-stopped thread.
struct StoppedThread {
  Tid tid;
  user_regs_struct regs{};       ///< as it was stopped (orig_rax and restart codes untouched)
  uint64_t sigmask = 0;          ///< PTRACE_GETSIGMASK
  std::vector<std::byte> xsave;  ///< NT_X86_XSTATE, the standard (non-compacted) format
};

enum class TaskState { running, group_stopped, zombie };

/// A task (thread group) of a stopped tree. Zombies have no threads and no pidfd use beyond waiting.
struct StoppedTask {
  Pid pid;
  Pid parent;  ///< within the tree; for the root, its real parent
  Pid pgid, sid;
  TaskState state = TaskState::running;
  int stop_signal = 0;  ///< for group_stopped: SIGSTOP, SIGTSTP, ...
  int exit_code = 0;    ///< for zombies: as wait(2) gives it
  Fd pidfd;
  ProcDir proc;
  std::vector<StoppedThread> threads;  ///< the leader's first
};

class StoppedTree {
 public:
  struct Options {
    std::chrono::milliseconds timeout{10'000};  ///< for all to stop
    bool suspend_seccomp = true;
    bool descendants = true;  ///< false: `root` alone is stopped, with `others`
    std::vector<Pid> others;
    /// For tasks in a frozen cgroup, which stop when that is thawed: called once all of their threads are seized, so
    /// that none of them runs before it stops.
    std::function<void()> thaw;
  };
  /// Seizes and stops `root` and all its descendants. Repeats until no new thread or child appears. Throws Refusal
  /// (a task is traced by somebody else, is a kernel thread, an uninterruptible task does not stop in time) with
  /// everything detached again.
  StoppedTree(Pid root, const Options& options, Logger& log);
  StoppedTree(StoppedTree&&) noexcept;
  ~StoppedTree();

  /// Parents before children; the root first.
  std::vector<StoppedTask>& tasks();
  const std::vector<StoppedTask>& tasks() const;
  StoppedTask& root() { return tasks().front(); }

  /// Sends SIGKILL to every task and reaps what is ours. The tree is empty afterwards.
  void kill();
  /// Detaches all; `leave_stopped` sends SIGSTOP to each task first, so that they stay stopped.
  void release(bool leave_stopped = false);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrate
