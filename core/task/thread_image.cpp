#include <asm/ldt.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <array>
#include <cstring>

#include "core/base/sched_attr.h"
#include "core/task/core_image.h"
#include "core/task/signal_queue.h"
#include "core/task/xsave.h"

namespace migrate {
namespace {

// linux/ioprio.h has it, but newer ones of Debian 12 do not compile as C++.
constexpr int kIoprioWhoProcess = 1;

constexpr unsigned kFirstTls = 12, kTlsEntries = 3;  // asm/segment.h: GDT_ENTRY_TLS_MIN, GDT_ENTRY_TLS_ENTRIES

std::string name_of(const StoppedThread& thread) { return "thread " + std::to_string(thread.tid.get()); }

/// A set of signals or capabilities.
uint64_t mask_field(const StatusFields& status, const std::string& key) {
  return parse_number(status_field(status, key), "/proc/PID/status: " + key, 16);
}

/// Real, effective, saved, file system.
std::array<uint32_t, 4> ids_field(const StatusFields& status, const std::string& key) {
  const auto ids = parse_numbers<uint32_t>(status_field(status, key), "/proc/PID/status: " + key);
  if (ids.size() != 4) throw Corrupt("/proc/PID/status", key + " has not four ids");
  return {ids[0], ids[1], ids[2], ids[3]};
}

void fill_registers(const user_regs_struct& r, img::user_x86_regs_entry& out) {
  out.set_r15(r.r15);
  out.set_r14(r.r14);
  out.set_r13(r.r13);
  out.set_r12(r.r12);
  out.set_bp(r.rbp);
  out.set_bx(r.rbx);
  out.set_r11(r.r11);
  out.set_r10(r.r10);
  out.set_r9(r.r9);
  out.set_r8(r.r8);
  out.set_ax(r.rax);
  out.set_cx(r.rcx);
  out.set_dx(r.rdx);
  out.set_si(r.rsi);
  out.set_di(r.rdi);
  out.set_orig_ax(r.orig_rax);
  out.set_ip(r.rip);
  out.set_cs(r.cs);
  out.set_flags(r.eflags);
  out.set_sp(r.rsp);
  out.set_ss(r.ss);
  out.set_fs_base(r.fs_base);
  out.set_gs_base(r.gs_base);
  out.set_ds(r.ds);
  out.set_es(r.es);
  out.set_fs(r.fs);
  out.set_gs(r.gs);
  out.set_mode(img::NATIVE);
}

/// As two words, the low one first.
void fill_capabilities(uint64_t mask, google::protobuf::RepeatedField<uint32_t>* out) {
  out->Add(static_cast<uint32_t>(mask));
  out->Add(static_cast<uint32_t>(mask >> 32));
}

void fill_creds(const StatusFields& status, const ThreadHarvest& harvest, img::creds_entry& out) {
  const std::array<uint32_t, 4> u = ids_field(status, "Uid"), g = ids_field(status, "Gid");
  out.set_uid(u[0]);
  out.set_euid(u[1]);
  out.set_suid(u[2]);
  out.set_fsuid(u[3]);
  out.set_gid(g[0]);
  out.set_egid(g[1]);
  out.set_sgid(g[2]);
  out.set_fsgid(g[3]);
  for (const uint32_t group : parse_numbers<uint32_t>(status_field(status, "Groups"), "/proc/PID/status: Groups"))
    out.add_groups(group);
  fill_capabilities(mask_field(status, "CapInh"), out.mutable_cap_inh());
  fill_capabilities(mask_field(status, "CapPrm"), out.mutable_cap_prm());
  fill_capabilities(mask_field(status, "CapEff"), out.mutable_cap_eff());
  fill_capabilities(mask_field(status, "CapBnd"), out.mutable_cap_bnd());
  fill_capabilities(mask_field(status, "CapAmb"), out.mutable_cap_amb());
  out.set_secbits(harvest.securebits);
  out.set_no_new_privs(parse_number<uint32_t>(status_field(status, "NoNewPrivs"), "/proc/PID/status: NoNewPrivs"));
}

/// Its segments in the GDT (set_thread_area(2)).
void fill_segments(const StoppedThread& thread, img::thread_info_x86& out) {
  for (unsigned entry = kFirstTls; entry < kFirstTls + kTlsEntries; ++entry) {
    user_desc d{};
    if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_THREAD_AREA), thread.tid.get(), entry, &d) != 0) return;
    if (d.seg_not_present != 0 && d.limit == 0 && d.base_addr == 0) continue;
    img::user_desc_t& o = *out.add_tls();
    o.set_entry_number(d.entry_number);
    o.set_base_addr(d.base_addr);
    o.set_limit(d.limit);
    o.set_seg_32bit(d.seg_32bit != 0);
    o.set_contents_h((d.contents & 2) != 0);
    o.set_contents_l((d.contents & 1) != 0);
    o.set_read_exec_only(d.read_exec_only != 0);
    o.set_limit_in_pages(d.limit_in_pages != 0);
    o.set_seg_not_present(d.seg_not_present != 0);
    o.set_usable(d.useable != 0);
  }
}

/// prctl(2), PR_MCE_KILL; what a memory error does to it.
void fill_error_policy(uint32_t flags, ext::ThreadExt& out) {
  constexpr uint32_t kItsOwn = 0x80, kEarly = 0x08000000;  // PF_MCE_PROCESS, PF_MCE_EARLY (linux/sched.h)
  if ((flags & kItsOwn) != 0) out.set_mce_kill((flags & kEarly) != 0 ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE);
}

void fill_scheduling(const StoppedThread& thread, img::thread_core_entry& out, ext::ThreadExt& extras) {
  SchedAttr attr{};
  check(::syscall(SYS_sched_getattr, thread.tid.get(), &attr, sizeof attr, 0), "read the scheduling of",
        name_of(thread));
  constexpr uint32_t kOther = 0, kFifo = 1, kRoundRobin = 2, kBatch = 3, kIdle = 5;
  switch (attr.policy) {
    case kOther:
    case kBatch:
    case kIdle:
      out.set_sched_nice(attr.nice);
      break;
    case kFifo:
    case kRoundRobin: {
      out.set_sched_prio(attr.priority);
      // What it has again when it is an ordinary one.
      errno = 0;
      const int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(thread.tid.get()));
      if (nice == -1 && errno != 0) throw Error("read the nice value of", name_of(thread), errno);
      out.set_sched_nice(nice);
      break;
    }
    default:
      throw Refusal(name_of(thread) + " runs under scheduling policy " + std::to_string(attr.policy) +
                        " (deadline or extensible)",
                    "give it another policy with chrt(1) first");
  }
  out.set_sched_policy(attr.policy);
  // Ordinary threads have one since Linux 6.12; who has not asked for it has the kernel's, as we do.
  SchedAttr ours{};
  if ((attr.policy == kOther || attr.policy == kBatch) && ::syscall(SYS_sched_getattr, 0, &ours, sizeof ours, 0) == 0 &&
      ours.policy == kOther && attr.runtime != ours.runtime)
    extras.set_slice_ns(attr.runtime);
  if ((attr.flags & kResetOnFork) != 0) extras.set_reset_on_fork(true);
  // Real-time threads run at the full frequency unless they, or a sysctl, say otherwise.
  const uint32_t usual_min = attr.policy == kFifo || attr.policy == kRoundRobin ? kMostUtilization : 0;
  if (attr.util_max != 0 && (attr.util_min != usual_min || attr.util_max != kMostUtilization)) {
    extras.set_util_min(attr.util_min);
    extras.set_util_max(attr.util_max);
  }
}

/// Pending for the thread or its task and not blocked.
bool unblocked_pending(const StatusFields& status, uint64_t blocked) {
  return ((mask_field(status, "SigPnd") | mask_field(status, "ShdPnd")) & ~blocked) != 0;
}

ext::ThreadExt describe_extras(const ThreadInputs& in) {
  ext::ThreadExt out;
  out.set_tid(static_cast<uint32_t>(in.image_tid));
  const pid_t tid = in.thread.tid.get();
  std::string mask(1024, '\0');  // 8,192 CPUs, the most a kernel can be built for
  const long bytes = check(::syscall(SYS_sched_getaffinity, tid, mask.size(), mask.data()), "read the affinity of",
                           name_of(in.thread));
  mask.resize(static_cast<size_t>(bytes));
  out.set_affinity(mask);
  const long ioprio = ::syscall(SYS_ioprio_get, kIoprioWhoProcess, tid);
  if (ioprio > 0) out.set_ioprio(static_cast<uint32_t>(ioprio));
  try {  // of the thread, but only listed in /proc/TID
    const std::string path = "/proc/" + std::to_string(tid) + "/timerslack_ns";
    out.set_timerslack_ns(parse_number(read_file_at(AT_FDCWD, path), path));
  } catch (const Error&) {  // not permitted: it keeps the default
  }
  return out;
}

}  // namespace

EarlyThread read_early(const StoppedThread& thread, const ProcDir& proc) {
  EarlyThread early{.status = proc.status(), .flags = proc.stat().flags};
  // Of any kind, in any thread: calls that are made in it would be killed, or end the thread.
  if (const auto seccomp = early.status.find("Seccomp"); seccomp != early.status.end() && seccomp->second != "0")
    throw Refusal(name_of(thread) + " runs under a seccomp filter",
                  "this cannot be moved yet; start the program without seccomp");
  return early;
}

ext::ThreadExt describe_thread(const ThreadInputs& in, img::core_entry& core) {
  const StatusFields& status = in.early.status;
  ext::ThreadExt extras = describe_extras(in);

  RestartFacts facts;
  facts.sample = in.sleep;
  facts.voluntary_switches =
      parse_number(status_field(status, "voluntary_ctxt_switches"), "/proc/PID/status: voluntary_ctxt_switches");
  facts.signal_pending = unblocked_pending(status, in.thread.sigmask);
  facts.as_of_ns = in.as_of_ns;
  facts.mem_fd = in.mem_fd;
  ImageRegisters registers = image_registers(in.thread.regs, facts);
  if (registers.restart) *extras.mutable_restart() = *registers.restart;

  core.set_mtype(img::core_entry::X86_64);
  img::thread_info_x86& info = *core.mutable_thread_info();
  info.set_clear_tid_addr(in.harvest.clear_child_tid);
  fill_registers(registers.regs, *info.mutable_gpregs());
  std::string unknown;
  if (!pack_xsave(in.thread.xsave, *info.mutable_fpregs(), unknown))
    throw Refusal(name_of(in.thread) + " uses " + unknown + " state, which the image format cannot hold",
                  "run the program without it");

  img::thread_core_entry& out = *core.mutable_thread_core();
  uint64_t robust_list = 0;
  size_t robust_len = 0;
  check(::syscall(SYS_get_robust_list, in.thread.tid.get(), &robust_list, &robust_len), "read the robust list of",
        name_of(in.thread));
  out.set_futex_rla(robust_list);
  out.set_futex_rla_len(static_cast<uint32_t>(robust_len));
  fill_scheduling(in.thread, out, extras);
  fill_error_policy(in.early.flags, extras);
  for (const auto& [id, value] : in.harvest.attributes) {
    ext::Attribute& attribute = *extras.add_attributes();
    attribute.set_id(id);
    attribute.set_value(value);
  }
  fill_segments(in.thread, info);
  out.set_blk_sigset(in.thread.sigmask);
  out.mutable_sas()->set_ss_sp(reinterpret_cast<uint64_t>(in.harvest.altstack.ss_sp));
  out.mutable_sas()->set_ss_size(in.harvest.altstack.ss_size);
  out.mutable_sas()->set_ss_flags(static_cast<uint32_t>(in.harvest.altstack.ss_flags));
  if (in.harvest.pdeath_signal != 0) out.set_pdeath_sig(static_cast<uint32_t>(in.harvest.pdeath_signal));
  read_signal_queue(in.thread.tid, false, *out.mutable_signals_p());
  fill_creds(status, in.harvest, *out.mutable_creds());
  out.set_seccomp_mode(img::disabled);
  std::string comm = in.proc.read("comm");
  comm.pop_back();  // the kernel's newline; a name may end in one of its own
  out.set_comm(comm);
  out.set_cg_set(1);
  if (in.harvest.rseq.pointer != 0) {
    img::rseq_entry& rseq = *out.mutable_rseq_entry();
    rseq.set_rseq_abi_pointer(in.harvest.rseq.pointer);
    rseq.set_rseq_abi_size(in.harvest.rseq.size);
    rseq.set_signature(in.harvest.rseq.signature);
    if (in.harvest.rseq.critical_section != 0) rseq.set_rseq_cs_pointer(in.harvest.rseq.critical_section);
  }
  return extras;
}

}  // namespace migrate
