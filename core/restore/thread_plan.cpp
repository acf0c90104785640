#include <linux/capability.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <cstring>

#include "core/restore/plans.h"

namespace migrate {
namespace {

// linux/ioprio.h has it, but newer ones of Debian 12 do not compile as C++.
constexpr int kIoprioWhoProcess = 1;

using restorer::kMayFail;
using restorer::Op;
using restorer::Tag;

constexpr size_t kThreadStack = 2048;
constexpr uint32_t kKeepAll = SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS;

/// A capability set as two words, as capset(2) and the images have it.
uint64_t capability_set(const google::protobuf::RepeatedField<uint32_t>& words) {
  uint64_t set = 0;
  for (int i = 0; i < std::min(words.size(), 2); ++i) set |= uint64_t{words[i]} << (32 * i);
  return set;
}

void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable, Region& region, OpList& list) {
  struct {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
  } caps;
  for (int i = 0; i < 2; ++i) {
    caps.data[i].effective = static_cast<uint32_t>(effective >> (32 * i));
    caps.data[i].permitted = static_cast<uint32_t>(permitted >> (32 * i));
    caps.data[i].inheritable = static_cast<uint32_t>(inheritable >> (32 * i));
  }
  const uint64_t at = region.put_value(caps);
  list.call(Tag::capabilities, SYS_capset, {at, at + offsetof(decltype(caps), data)});
}

void plan_ids(const img::creds_entry& c, Region& region, OpList& list) {
  const std::vector<uint32_t> groups(c.groups().begin(), c.groups().end());
  list.call(Tag::credentials, SYS_setgroups, {groups.size(), region.put(std::as_bytes(std::span(groups)))});
  list.call(Tag::credentials, SYS_setresgid, {c.gid(), c.egid(), c.sgid()});
  list.call(Tag::credentials, SYS_setfsgid, {c.fsgid()});
  list.call(Tag::credentials, SYS_setresuid, {c.uid(), c.euid(), c.suid()});
  list.call(Tag::credentials, SYS_setfsuid, {c.fsuid()});
}

/// Order: ids while the fix-up of capabilities is off, bounds and securebits while CAP_SETPCAP is still there, the sets
/// last. Ambient capabilities need permitted and inheritable ones.
void plan_credentials(const img::creds_entry& c, Region& region, OpList& list) {
  const uint64_t bounding = capability_set(c.cap_bnd()), permitted = capability_set(c.cap_prm());
  const uint64_t effective = capability_set(c.cap_eff()), inheritable = capability_set(c.cap_inh());
  const uint64_t ambient = capability_set(c.cap_amb());
  list.call(Tag::credentials, SYS_prctl, {PR_SET_SECUREBITS, kKeepAll, 0, 0, 0});
  plan_ids(c, region, list);
  const uint64_t setpcap = uint64_t{1} << CAP_SETPCAP;
  // setresuid from root clears the effective set only without NO_SETUID_FIXUP; nothing to raise again here.
  for (uint64_t cap = 0; cap < 64; ++cap) {
    if ((bounding >> cap & 1) != 0 || ::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) != 1) continue;
    list.call(Tag::capabilities, SYS_prctl, {PR_CAPBSET_DROP, cap, 0, 0, 0});
  }
  set_capabilities(effective | setpcap, permitted | setpcap, inheritable, region, list);
  for (uint64_t cap = 0; cap < 64; ++cap)
    if ((ambient >> cap & 1) != 0)
      list.call(Tag::capabilities, SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0});
  list.call(Tag::credentials, SYS_prctl, {PR_SET_SECUREBITS, c.secbits(), 0, 0, 0});
  set_capabilities(effective, permitted, inheritable, region, list);
}

void plan_scheduling(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  const img::thread_core_entry& core = task.cores[thread].thread_core();
  // Without RESET_ON_FORK: the policy is the thread's own.
  const sched_param param{static_cast<int>(core.sched_prio())};
  list.call(Tag::scheduling, SYS_sched_setscheduler, {0, core.sched_policy(), region.put_value(param)});
  if (core.has_sched_nice())
    list.call(Tag::scheduling, SYS_setpriority,
              {PRIO_PROCESS, 0, static_cast<uint64_t>(static_cast<int64_t>(core.sched_nice()))});
  const auto extra = task.extra.find(task.tids[thread]);
  if (extra == task.extra.end()) return;
  const ext::ThreadExt& e = extra->second;
  // A host with fewer CPUs keeps the mask it has.
  if (!e.affinity().empty()) {
    std::string mask = e.affinity().substr(0, 1024);
    mask.resize((mask.size() + 7) / 8 * 8);
    list.call(Tag::scheduling, SYS_sched_setaffinity, {0, mask.size(), region.put(as_bytes_of(mask))}, kMayFail);
  }
  if (e.has_ioprio())
    list.call(Tag::scheduling, SYS_ioprio_set, {uint64_t{kIoprioWhoProcess}, 0, e.ioprio()}, kMayFail);
  if (e.has_timerslack_ns() && e.timerslack_ns() != 0)
    list.call(Tag::scheduling, SYS_prctl, {PR_SET_TIMERSLACK, e.timerslack_ns(), 0, 0, 0});
}

void plan_own_signals(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  for (const img::siginfo_entry& e : task.cores[thread].thread_core().signals_p().signals()) {
    if (e.siginfo().size() != sizeof(siginfo_t)) throw Corrupt("a pending signal", "its siginfo has the wrong size");
    siginfo_t info;
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
    list.call(Tag::rseq, SYS_rseq, {r.rseq_abi_pointer(), r.rseq_abi_size(), 0, r.signature()});
  }
  list.call(Tag::tid_address, SYS_set_tid_address, {entry.thread_info().clear_tid_addr()});
  plan_own_signals(task, thread, region, list);
}

void plan_identity(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  const img::thread_core_entry& core = task.cores[thread].thread_core();
  if (core.has_creds()) plan_credentials(core.creds(), region, list);
  if (core.creds().no_new_privs() != 0) list.call(Tag::process_flags, SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  // A change of credentials clears it.
  list.call(Tag::parent_death_signal, SYS_prctl, {PR_SET_PDEATHSIG, core.pdeath_sig(), 0, 0, 0});
  // As above: dumpable belongs to the address space, so the leader, who is last, sets it.
  if (thread == 0 && task.mm.has_dumpable() && task.mm.dumpable() <= 1)
    list.call(Tag::process_flags, SYS_prctl, {PR_SET_DUMPABLE, static_cast<uint64_t>(task.mm.dumpable()), 0, 0, 0});
}

void plan_clone_threads(const TaskImage& task, Region& region, OpList& list) {
  for (size_t i = 1; i < task.tids.size(); ++i) {
    OpList own;
    plan_thread(task, i, region, own);
    plan_identity(task, i, region, own);
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

void check_privileges(const TaskImage& task) {
  const std::string who = "task " + std::to_string(task.pid);
  uint32_t resource = 0;
  for (const img::rlimit_entry& e : task.core().tc().rlimits().rlimits()) {
    if (resource >= RLIM_NLIMITS) break;
    rlimit own{};
    check(::prlimit(0, static_cast<__rlimit_resource>(resource), nullptr, &own), "read", "our own limits");
    if (e.max() > own.rlim_max && ::prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) != 1) {
      throw Refusal(who + " has a hard limit (number " + std::to_string(resource) + ") above ours",
                    "raise that limit of the process that restores it to " + std::to_string(e.max()));
    }
    ++resource;
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  check(::syscall(SYS_capget, &header, data), "read", "our own capabilities");
  const uint64_t own = data[0].permitted | uint64_t{data[1].permitted} << 32;
  for (size_t i = 0; i < task.cores.size(); ++i) {
    const uint64_t wanted = capability_set(task.cores[i].thread_core().creds().cap_prm());
    if ((wanted & ~own) != 0) {
      throw Refusal("thread " + std::to_string(task.tids[i]) + " has capability number " +
                        std::to_string(__builtin_ctzll(wanted & ~own)) + ", which the restoring process lacks",
                    "run `migrate restore` or `migrate receive` with that capability");
    }
  }
}

}  // namespace migrate
