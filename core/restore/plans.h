// What the restorer blob is told to do, subject by subject. Each function appends to a list; nothing is executed here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "core/restore/region.h"
#include "core/restore/task_image.h"

namespace migrate {

struct MmPlanInput {
  const TaskImage& task;
  const std::vector<StagedRange>& staged;
  AddressRange region;                                ///< stays mapped
  uint64_t parking = 0;                               ///< room for the kernel's mappings
  std::vector<AddressRange> kernel;                   ///< own_kernel_mappings() (restorable.h)
  std::function<int(const ImageVma&)> descriptor_of;  ///< of a mapping's file or shared object
  int exe_fd = -1;
  uint64_t attaching = 0;                      ///< room for the largest System V segment of which a part is mapped
  std::map<uint64_t, uint64_t> segments = {};  ///< System V segments by number: their sizes in whole pages
};
/// Throws Refusal if the kernel's mappings do not fit this kernel's (restorable.h).
void check_kernel_mappings(const TaskImage& task, const std::vector<AddressRange>& own);
/// Throws Refusal if this kernel lacks what one of its mappings is: droppable (Linux 6.11), sealed (6.10).
void check_mapping_kinds(const TaskImage& task);
/// mm_plan.cpp: the whole address space, in place of the shell's.
void plan_memory(const MmPlanInput& in, Region& region, OpList& list);

/// task_plan.cpp: folders, signal actions, limits and other things of the whole task.
struct FolderFds {
  int root = -1, cwd = -1;
  bool change_root = false;
};
/// Everything but the address space, in an order that leaves no moment in which the task's code could run, or the
/// kernel act for it, with other credentials than its own. `elapsed_ns` is taken off what is left of each timer.
void plan_task(const TaskImage& task, const FolderFds& fds, uint64_t elapsed_ns, Region& region, OpList& list);
/// timer_plan.cpp: interval timers and POSIX timers. Those whose signal is queued are left for plan_expired_timer.
void plan_timers(const TaskImage& task, uint64_t elapsed_ns, Region& region, OpList& list);
/// Clocks that wake the machine want CAP_WAKE_ALARM, which the task may have given up since. Other timers are made by
/// the task as itself, so that they count as its user's queued signals, not as root's.
bool timers_need_privilege(const TaskImage& task);
/// Whether `signal`, one of the queue of thread `tid` (0: of the task), is what a timer has sent when it expired: that
/// timer, else nullptr.
const img::posix_timer_entry* timer_of_signal(const TaskImage& task, pid_t tid, const img::siginfo_entry& signal);
/// Lets the timer expire, so that the kernel itself queues its signal.
void plan_expired_timer(const img::posix_timer_entry& e, uint64_t elapsed_ns, Region& region, OpList& list);

/// credentials_plan.cpp: throws Refusal for limits and capabilities that this process cannot give.
void check_privileges(const TaskImage& task);

/// thread_plan.cpp: what each thread does for itself. First what needs privileges.
void plan_thread(const TaskImage& task, size_t thread, Region& region, OpList& list);
/// credentials_plan.cpp: from here on the thread is what its image says, no more.
void plan_credentials(const TaskImage& task, size_t thread, Region& region, OpList& list);
/// What makes the kernel act for the thread or look at its memory: only then. A restartable sequence could even make
/// the kernel jump into the task's code, if its memory says that the restorer's is part of one.
void plan_user_state(const TaskImage& task, size_t thread, Region& region, OpList& list);
/// Makes threads 1, 2, ... each with a list of its own.
void plan_clone_threads(const TaskImage& task, Region& region, OpList& list);

}  // namespace migrate
