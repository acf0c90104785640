#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "core/base/sched_attr.h"
#include "core/inject/attributes.h"
#include "core/restore/memory_policies.h"
#include "core/restore/plans.h"

namespace migrate {
namespace {

// linux/ioprio.h has it, but newer ones of Debian 12 do not compile as C++.
constexpr int kIoprioWhoProcess = 1;

using restorer::kMayFail;
using restorer::Op;
using restorer::Tag;

constexpr size_t kThreadStack = 2048;
constexpr uint64_t kDefaultSlackNs = 50'000;

/// Whether a thread is to set that control of speculation itself: not where the machine needs none, or has none but
/// that. Throws Refusal where nothing does what was wanted.
bool is_for_threads_here(const Attribute& a, uint64_t wanted) {
  const int here = ::prctl(static_cast<int>(a.get_args[0]), a.get_args[1], 0, 0, 0);
  if (here >= 0 && (here & PR_SPEC_PRCTL) != 0) return true;
  constexpr int kOff = PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE;
  const bool does =
      here == PR_SPEC_NOT_AFFECTED ||
      (here > 0 && wanted == PR_SPEC_ENABLE ? (here & PR_SPEC_ENABLE) != 0 : here > 0 && (here & kOff) != 0);
  if (!does)
    throw Refusal(
        "a thread has set " + std::string(a.name) + " (PR_SET_SPECULATION_CTRL), which this kernel does not allow",
        "boot it with the usual mitigations");
  return false;
}

/// Those that the image does not have are as usual, where the kernel knows them.
void plan_attributes(const ext::ThreadExt& e, OpList& list) {
  for (const ext::Attribute& told : e.attributes())
    if (thread_attribute(told.id()) == nullptr) throw Corrupt("migrate-ext.img", "an attribute is unknown");
  for (const Attribute& a : thread_attributes()) {
    if (a.set == kSetApart) continue;
    const auto told = std::ranges::find_if(e.attributes(), [&](const auto& t) { return t.id() == a.id; });
    const bool has = told != e.attributes().end();
    const uint64_t value = has ? told->value() : a.usual;
    if (value > a.most) throw Corrupt("migrate-ext.img", std::string(a.name) + " is impossible");
    if (has && a.settable != 0 && !is_for_threads_here(a, value & ~a.settable)) continue;
    const auto args = with_value(a.set_args, value & ~a.settable);
    list.call(Tag::process_flags, a.set, {args[0], args[1], args[2], args[3], args[4]}, has ? 0 : kMayFail);
  }
}

/// What a thread does not say is not left as the restoring process had it: a daemon may be more than it.
void plan_scheduling(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  const img::thread_core_entry& core = task.cores[thread].thread_core();
  const auto extra = task.extra.find(task.tids[thread]);
  const ext::ThreadExt& e = extra == task.extra.end() ? ext::ThreadExt::default_instance() : extra->second;
  const sched_param param{static_cast<int>(core.sched_prio())};
  const uint32_t policy = core.sched_policy() | (e.reset_on_fork() ? uint32_t{SCHED_RESET_ON_FORK} : 0);
  list.call(Tag::scheduling, SYS_sched_setscheduler, {0, policy, region.put_value(param)});
  list.call(Tag::scheduling, SYS_setpriority,
            {PRIO_PROCESS, 0, static_cast<uint64_t>(static_cast<int64_t>(core.sched_nice()))});
  if (e.has_slice_ns() && (core.sched_policy() == SCHED_OTHER || core.sched_policy() == SCHED_BATCH)) {
    SchedAttr attr{.size = sizeof attr, .policy = core.sched_policy(), .flags = e.reset_on_fork() ? kResetOnFork : 0};
    attr.nice = core.sched_nice();
    attr.runtime = e.slice_ns();
    list.call(Tag::scheduling, SYS_sched_setattr, {0, region.put_value(attr), 0});
  }
  if (e.has_util_max()) {
    if (e.util_min() > e.util_max() || e.util_max() > kMostUtilization)
      throw Corrupt("migrate-ext.img", "a utilization clamp is impossible");
    SchedAttr attr{.size = sizeof attr, .flags = kOnlyClamps};
    attr.util_min = e.util_min();
    attr.util_max = e.util_max();
    list.call(Tag::scheduling, SYS_sched_setattr, {0, region.put_value(attr), 0}, kMayFail);  // kernels may lack them
  }
  // A host with fewer CPUs keeps the mask it has.
  if (!e.affinity().empty()) {
    std::string mask = e.affinity().substr(0, 1024);
    mask.resize((mask.size() + 7) / 8 * 8);
    list.call(Tag::scheduling, SYS_sched_setaffinity, {0, mask.size(), region.put(as_bytes_of(mask))}, kMayFail);
  }
  list.call(Tag::scheduling, SYS_ioprio_set, {uint64_t{kIoprioWhoProcess}, 0, e.ioprio()}, kMayFail);
  const uint64_t slack = e.timerslack_ns() != 0 ? e.timerslack_ns() : kDefaultSlackNs;
  list.call(Tag::scheduling, SYS_prctl, {PR_SET_TIMERSLACK, slack, 0, 0, 0});
  plan_attributes(e, list);
  plan_policy(e, region, list);
  if (e.has_mce_kill()) {
    list.call(Tag::process_flags, SYS_prctl, {PR_MCE_KILL, PR_MCE_KILL_SET, e.mce_kill(), 0, 0});
  } else {
    list.call(Tag::process_flags, SYS_prctl, {PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0}, kMayFail);
  }
}

void plan_own_signals(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  for (const img::siginfo_entry& e : task.cores[thread].thread_core().signals_p().signals()) {
    if (e.siginfo().size() != sizeof(siginfo_t)) throw Corrupt("a pending signal", "its siginfo has the wrong size");
    siginfo_t info;
    if (timer_of_signal(task, task.tids[thread], e) != nullptr) continue;  // plan_timers lets it expire
    std::memcpy(&info, e.siginfo().data(), sizeof info);
    list.call(Tag::pending_signal, SYS_rt_tgsigqueueinfo,
              {static_cast<uint64_t>(task.pid), static_cast<uint64_t>(task.tids[thread]),
               static_cast<uint64_t>(info.si_signo), region.put_value(info)});
  }
}

}  // namespace

void plan_thread(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  const img::core_entry& entry = task.cores[thread];
  const img::thread_core_entry& core = entry.thread_core();
  std::string comm = core.has_comm() || thread != 0 ? core.comm() : entry.tc().comm();
  comm.resize(16);
  list.call(Tag::name, SYS_prctl, {PR_SET_NAME, region.put(as_bytes_of(comm)), 0, 0, 0});
  plan_scheduling(task, thread, region, list);
}

void plan_user_state(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  const img::core_entry& entry = task.cores[thread];
  const img::thread_core_entry& core = entry.thread_core();
  // A change of credentials clears it.
  list.call(Tag::parent_death_signal, SYS_prctl, {PR_SET_PDEATHSIG, core.pdeath_sig(), 0, 0, 0});
  plan_own_signals(task, thread, region, list);
  list.call(Tag::tid_address, SYS_set_tid_address, {entry.thread_info().clear_tid_addr()});
  if (core.futex_rla() != 0) list.call(Tag::robust_list, SYS_set_robust_list, {core.futex_rla(), core.futex_rla_len()});
  if (core.has_sas()) {
    stack_t stack{};
    stack.ss_sp = reinterpret_cast<void*>(core.sas().ss_sp());  // NOLINT: an address of the task
    stack.ss_flags = static_cast<int>(core.sas().ss_flags() & ~uint32_t{SS_ONSTACK});
    stack.ss_size = core.sas().ss_size();
    list.call(Tag::altstack, SYS_sigaltstack, {region.put_value(stack), 0});
  }
  if (core.has_rseq_entry() && core.rseq_entry().rseq_abi_pointer() != 0) {
    const img::rseq_entry& r = core.rseq_entry();
    // struct rseq: cpu_id_start, cpu_id, rseq_cs. Not inside of a sequence until its registers are set.
    list.add(Op::clear_word, Tag::rseq, {r.rseq_abi_pointer() + 8});
    list.call(Tag::rseq, SYS_rseq, {r.rseq_abi_pointer(), r.rseq_abi_size(), 0, r.signature()});
  }
}

void plan_clone_threads(const TaskImage& task, Region& region, OpList& list) {
  for (size_t i = 1; i < task.tids.size(); ++i) {
    OpList own;
    plan_thread(task, i, region, own);
    plan_credentials(task, i, region, own);
    plan_user_state(task, i, region, own);
    own.add(Op::thread_done, Tag::clone_thread);
    const uint64_t todo = region.put_list(own);
    clone_args args{};
    args.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    args.stack = region.put_stack(kThreadStack);
    args.stack_size = kThreadStack;
    args.set_tid = region.put_value(task.tids[i]);
    args.set_tid_size = 1;
    list.add(Op::clone_thread, Tag::clone_thread, {region.put_value(args), todo});
  }
}

}  // namespace migrate
