#include <asm/ldt.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "core/base/kernel_abi.h"
#include "core/restore/plans.h"

namespace migrate {
namespace {

using restorer::kMayFail;
using restorer::Tag;

constexpr size_t kSigsetBytes = 8;

/// The kernel's struct sigaction.
struct KernelAction {
  uint64_t handler, flags, restorer, mask;
};

void plan_folders(const TaskImage& task, const FolderFds& fds, Region& region, OpList& list) {
  if (fds.change_root) {
    list.call(Tag::folder, SYS_fchdir, {static_cast<uint64_t>(fds.root)});
    list.call(Tag::folder, SYS_chroot, {region.put(as_bytes_of(std::string_view(".", 2)))});
  }
  list.call(Tag::folder, SYS_fchdir, {static_cast<uint64_t>(fds.cwd)});
  constexpr uint32_t kUsualMask = 022;
  list.call(Tag::folder, SYS_umask, {(task.fs.has_umask() ? task.fs.umask() : kUsualMask) & 0777});
  list.call(Tag::personality, SYS_personality, {task.core().tc().personality()});
}

void plan_signal_actions(const TaskImage& task, Region& region, OpList& list) {
  const auto& actions = task.core().tc().sigactions();
  if (actions.size() > 62)
    throw Corrupt(image_name("core", static_cast<uint64_t>(task.pid)), "too many signal actions");
  // The image leaves out SIGKILL and SIGSTOP, which have no action.
  int next = 0;
  for (uint64_t signal = 1; signal <= 64 && next < actions.size(); ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    const img::sa_entry& e = actions[next++];
    const KernelAction action{e.sigaction(), e.flags(), e.restorer(), e.mask()};
    list.call(Tag::signal_action, SYS_rt_sigaction, {signal, region.put_value(action), 0, kSigsetBytes});
  }
}

/// A signal queue may be as full as its limit, and signals that other processes of the user have queued here count too:
/// so there is room first, and the limit comes when the signals are in.
void plan_room_for_signals(const TaskImage& task, Region& region, OpList& list) {
  rlimit own{};
  check(::getrlimit(RLIMIT_SIGPENDING, &own), "read", "our own limits");
  const uint64_t room = std::max<uint64_t>(own.rlim_max, task.core().tc().rlimits().rlimits(RLIMIT_SIGPENDING).max());
  list.call(Tag::limits, SYS_prlimit64, {0, RLIMIT_SIGPENDING, region.put_value(rlimit{room, room}), 0});
}

void plan_limit(const TaskImage& task, uint64_t resource, Region& region, OpList& list) {
  const img::rlimit_entry& e = task.core().tc().rlimits().rlimits(static_cast<int>(resource));
  list.call(Tag::limits, SYS_prlimit64, {0, resource, region.put_value(rlimit{e.cur(), e.max()}), 0});
}

void plan_limits(const TaskImage& task, Region& region, OpList& list) {
  for (uint64_t resource = 0; resource < RLIM_NLIMITS; ++resource)
    if (resource != RLIMIT_SIGPENDING) plan_limit(task, resource, region, list);
}

/// modify_ldt(2): what it has read back is written, entry by entry.
void plan_segments(const TaskImage& task, Region& region, OpList& list) {
  constexpr uint64_t kWrite = 0x11;
  constexpr int kMostEntries = 8192;
  const auto& ldt = task.task_extra().ldt();
  if (ldt.size() > kMostEntries) throw Corrupt("migrate-ext.img", "an LDT is too long");
  for (int i = 0; i < ldt.size(); ++i) {
    const uint64_t d = ldt[i];
    const auto bits = [&](unsigned from, unsigned count) {
      return static_cast<uint32_t>(d >> from & ((uint64_t{1} << count) - 1));
    };
    if (d == 0) continue;
    user_desc e{};
    e.entry_number = static_cast<unsigned>(i);
    e.base_addr = bits(16, 24) | bits(56, 8) << 24;
    e.limit = bits(0, 16) | bits(48, 4) << 16;
    e.seg_32bit = bits(54, 1);
    e.contents = bits(42, 2);
    e.read_exec_only = bits(41, 1) ^ 1;
    e.limit_in_pages = bits(55, 1);
    e.seg_not_present = bits(47, 1) ^ 1;
    e.useable = bits(52, 1);
    list.call(Tag::process_flags, SYS_modify_ldt, {kWrite, region.put_value(e), sizeof e});
  }
}

void plan_task_flags(const TaskImage& task, OpList& list) {
  const img::task_core_entry& tc = task.core().tc();
  list.call(Tag::process_flags, SYS_prctl, {PR_SET_CHILD_SUBREAPER, tc.child_subreaper() ? 1u : 0u, 0, 0, 0});
  const ext::TaskExt& extra = task.task_extra();
  if (task.mm.thp_disabled())
    list.call(Tag::process_flags, SYS_prctl, {PR_SET_THP_DISABLE, 1, extra.thp_flags(), 0, 0});
  list.call(Tag::process_flags, SYS_prctl, {PR_SET_MEMORY_MERGE, extra.memory_merge() ? 1u : 0u, 0, 0, 0},
            extra.memory_merge() ? 0 : kMayFail);
  // All that it maps is mapped.
  if (extra.lock_future() != 0)
    list.call(Tag::process_flags, SYS_mlockall, {extra.lock_future() & (MCL_FUTURE | MCL_ONFAULT)});
  for (uint32_t bit = 0; bit < 32; ++bit) {
    const uint32_t command = tc.membarrier_registration_mask() & 1u << bit;
    if (command != 0) list.call(Tag::membarrier, SYS_membarrier, {command, 0, 0});
  }
}

void plan_shared_signals(const TaskImage& task, uint64_t elapsed_ns, Region& region, OpList& list) {
  for (const img::siginfo_entry& e : task.core().tc().signals_s().signals()) {
    if (const img::posix_timer_entry* timer = timer_of_signal(task, 0, e)) {
      plan_expired_timer(*timer, elapsed_ns, region, list);
      continue;
    }
    if (e.siginfo().size() != sizeof(siginfo_t)) throw Corrupt("a pending signal", "its siginfo has the wrong size");
    siginfo_t info;
    std::memcpy(&info, e.siginfo().data(), sizeof info);
    list.call(Tag::pending_signal, SYS_rt_sigqueueinfo,
              {static_cast<uint64_t>(task.pid), static_cast<uint64_t>(info.si_signo), region.put_value(info)});
  }
}

}  // namespace

void plan_task(const TaskImage& task, const FolderFds& fds, uint64_t elapsed_ns, Region& region, OpList& list) {
  plan_folders(task, fds, region, list);
  // The task's user must not get at our descriptors in it; final_state sets the task's own value.
  list.call(Tag::process_flags, SYS_prctl, {PR_SET_DUMPABLE, 0, 0, 0, 0});
  plan_signal_actions(task, region, list);
  plan_room_for_signals(task, region, list);
  plan_clone_threads(task, region, list);
  plan_limits(task, region, list);
  const bool privileged_timers = timers_need_privilege(task);
  if (privileged_timers) plan_timers(task, elapsed_ns, region, list);
  plan_task_flags(task, list);
  plan_segments(task, region, list);
  plan_thread(task, 0, region, list);
  plan_credentials(task, 0, region, list);
  if (!privileged_timers) plan_timers(task, elapsed_ns, region, list);
  plan_shared_signals(task, elapsed_ns, region, list);
  plan_user_state(task, 0, region, list);
  list.add(restorer::Op::await_threads, Tag::clone_thread, {task.tids.size() - 1});
  plan_limit(task, RLIMIT_SIGPENDING, region, list);
}

}  // namespace migrate
