// core-TID.img: what belongs to a thread (registers, credentials, scheduling, pending signals), and for leaders what
// belongs to the whole task (dispositions, timers, limits). Everything is read from outside, from stopped threads; what
// only the task can tell comes from its harvest.
//
// ptrace(2) calls: only on the tracer's thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/freeze/stopped_tree.h"
#include "core/inject/harvest.h"
#include "core/task/proc_text.h"
#include "core/task/restart.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"

namespace migrate {

/// Pids as the images number them: as the tree's own (innermost) pid namespace does.
class ImagePids {
 public:
  /// From NSpid of every task and thread. Throws Refusal if the tree spans pid namespaces.
  explicit ImagePids(const std::vector<StoppedTask>& tasks);
  /// 0 for a task that is not in the tree.
  pid_t of(pid_t pid) const;

 private:
  std::map<pid_t, pid_t> numbers_;
};

/// What must be read of a stopped thread before anything is run in it.
struct EarlyThread {
  std::map<std::string, std::string> status;  ///< /proc/TID/status: its switches and pending signals
  uint32_t flags = 0;                         ///< PF_*
};
/// Throws Refusal for a thread under seccomp.
EarlyThread read_early(const StoppedThread& thread, const ProcDir& proc);

/// What thread images are made of.
struct ThreadInputs {
  const StoppedThread& thread;
  const ProcDir& proc;  ///< of the thread
  const ThreadHarvest& harvest;
  const EarlyThread& early;
  const SleepSample* sleep = nullptr;
  int64_t as_of_ns = 0;  ///< CLOCK_MONOTONIC: what is left of calls is told as of this moment
  pid_t image_tid = 0;
  int mem_fd = -1;  ///< of the task
};

/// Fills mtype, thread_info and thread_core; returns what goes into migrate-ext.img. Throws Refusal, naming the thread.
ext::ThreadExt describe_thread(const ThreadInputs& in, img::core_entry& core);

/// Makes what is left of timers that of `ago_ns` before TaskHarvest::monotonic: those of the tasks that are visited
/// first have not counted on meanwhile. Timers of processor time stand still.
void count_back(TaskHarvest& harvest, const std::vector<PosixTimer>& timers, int64_t ago_ns);

/// What migrate-ext.img says of a task that has ended.
ext::ThreadExt describe_ended(const StoppedTask& task, pid_t image_pid);

/// Fills tc of a living task's leader.
void describe_task(const StoppedTask& task, const TaskHarvest& harvest, const std::vector<PosixTimer>& timers,
                   const ImagePids& pids, img::core_entry& core);
/// The core image of a zombie.
void describe_zombie(const StoppedTask& task, img::core_entry& core);

}  // namespace migrate
