#include "core/restore/final_state.h"

#include <asm/ldt.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"
#include "core/files/file_locks.h"
#include "core/freeze/tracee.h"
#include "core/inject/remote_call.h"
#include "core/restore/group_stop.h"
#include "core/task/xsave.h"

extern "C" {
extern const unsigned char restorer_blob_start[];
extern const unsigned char restorer_blob_end[];
}

namespace migrate {
namespace {

constexpr uint32_t kTaskStopped = 3;  // CRIU's task state
constexpr int64_t kRestartBlock = -516;
constexpr uint64_t kRedZone = 128;  // below the stack pointer, the x86-64 ABI

std::string thread_name(pid_t tid) { return "thread " + std::to_string(tid); }

void seize(pid_t tid) {
  constexpr uint64_t kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
  check(::ptrace(PTRACE_SEIZE, tid, nullptr, kOptions), "seize", thread_name(tid));
}

uint64_t syscall_offset() {
  for (const unsigned char* p = restorer_blob_start; p + 1 < restorer_blob_end; ++p)
    if (p[0] == 0x0f && p[1] == 0x05) return static_cast<uint64_t>(p - restorer_blob_start);
  throw Error("the restorer blob has no system call");
}

/// Behind the blob's code its lists begin, which are done with.
uint64_t spent_offset() {
  return (static_cast<uint64_t>(restorer_blob_end - restorer_blob_start) + 15) & ~uint64_t{15};
}

user_regs_struct final_registers(const img::user_x86_regs_entry& g) {
  user_regs_struct r{};
  r.r15 = g.r15();
  r.r14 = g.r14();
  r.r13 = g.r13();
  r.r12 = g.r12();
  r.rbp = g.bp();
  r.rbx = g.bx();
  r.r11 = g.r11();
  r.r10 = g.r10();
  r.r9 = g.r9();
  r.r8 = g.r8();
  r.rax = g.ax();
  r.rcx = g.cx();
  r.rdx = g.dx();
  r.rsi = g.si();
  r.rdi = g.di();
  r.orig_rax = g.orig_ax();
  r.rip = g.ip();
  r.cs = g.cs();
  r.eflags = g.flags();
  r.rsp = g.sp();
  r.ss = g.ss();
  r.fs_base = g.fs_base();
  r.gs_base = g.gs_base();
  r.ds = g.ds();
  r.es = g.es();
  r.fs = g.fs();
  r.gs = g.gs();
  // The restart block stayed behind: such a call reports its interruption.
  if (static_cast<int64_t>(r.rax) == kRestartBlock && static_cast<int64_t>(r.orig_rax) >= 0)
    r.rax = static_cast<uint64_t>(int64_t{-EINTR});
  return r;
}

/// Where 16 bytes can be written that the thread does not use while it is in a call. Without an alternate signal stack
/// that is below the red zone, where the kernel would put a signal's frame. Programs whose stacks have no room there
/// (Go's goroutines) must have an alternate one; while nobody is on it, it is free, and a handler that comes to use it
/// ends the call first.
uint64_t spare_bytes(const img::core_entry& core, uint64_t rsp) {
  constexpr uint64_t kDisabled = SS_DISABLE;
  const img::thread_sas_entry& stack = core.thread_core().sas();
  const uint64_t start = (stack.ss_sp() + 15) & ~uint64_t{15};
  const bool usable = stack.ss_size() >= 1024 && (stack.ss_flags() & kDisabled) == 0;
  if (usable && rsp - stack.ss_sp() > stack.ss_size()) return start;
  return (rsp - kRedZone - 64) & ~uint64_t{15};
}

/// Points the time-out argument of an interrupted call at what is left of it.
void shorten_timeout(const WaitingTask& waiting, size_t thread, int mem, user_regs_struct& regs) {
  const TaskImage& task = *waiting.image;
  const auto extra = task.extra.find(task.tids[thread]);
  if (extra == task.extra.end() || !extra->second.has_restart()) return;
  const ext::RestartCall& call = extra->second.restart();
  if (call.nr() == SYS_poll) {
    const auto left = static_cast<int32_t>(regs.rdx);
    const uint64_t elapsed_ms = waiting.elapsed_ns / 1'000'000;
    if (left > 0) regs.rdx = static_cast<uint64_t>(left) > elapsed_ms ? static_cast<uint64_t>(left) - elapsed_ms : 0;
  }
  if (!call.has_timespec_arg() || !call.has_remaining_ns()) return;
  const uint64_t at = spare_bytes(task.cores[thread], regs.rsp);
  for (const ImageVma& v : task.vmas) {
    if (at < v.start || at > v.end - 16 || (v.prot & PROT_WRITE) == 0) continue;
    const uint64_t ns = call.remaining_ns() - std::min<uint64_t>(call.remaining_ns(), waiting.elapsed_ns);
    const timespec left{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
    pwrite_full(mem, std::as_bytes(std::span(&left, 1)), at, thread_name(task.tids[thread]));
    const std::array<unsigned long long*, 6> arguments{&regs.rdi, &regs.rsi, &regs.rdx, &regs.r10, &regs.r8, &regs.r9};
    if (call.timespec_arg() < arguments.size()) *arguments[call.timespec_arg()] = at;
    return;
  }
}

/// Takes the task's file locks, by calls of its leader; `scratch`: memory in the task for a struct flock. After all
/// else that closes descriptors: closing any descriptor of a file drops the POSIX locks on it.
void take_locks(const TaskImage& task, RemoteCalls& leader, int mem, uint64_t scratch) {
  for (const img::file_lock_entry& lock : task.locks) {
    const bool exclusive = lock.type() == F_WRLCK;
    if (!exclusive && lock.type() != F_RDLCK) throw Corrupt("filelocks.img", "a lock of an unknown type");
    int64_t result;
    if (lock.flag() == kLockFlock) {
      const uint64_t operation = (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB;
      result = leader.call(SYS_flock, {static_cast<uint64_t>(lock.fd()), operation});
    } else if (lock.flag() == kLockPosix || lock.flag() == kLockDescription) {
      struct flock range {};
      range.l_type = static_cast<short>(lock.type());
      range.l_whence = SEEK_SET;
      range.l_start = lock.start();
      range.l_len = lock.len();
      pwrite_full(mem, std::as_bytes(std::span(&range, 1)), scratch, "the restorer's memory");
      const uint64_t command = lock.flag() == kLockPosix ? F_SETLK : F_OFD_SETLK;
      result = leader.call(SYS_fcntl, {static_cast<uint64_t>(lock.fd()), command, scratch});
    } else {
      throw Refusal("task " + std::to_string(task.pid) + " has a lock of kind " + std::to_string(lock.flag()) +
                        " through fd " + std::to_string(lock.fd()),
                    "only POSIX, flock and open file description locks can be restored");
    }
    if (result == -EAGAIN || result == -EACCES)
      throw Refusal("task " + std::to_string(task.pid) + " had a lock through fd " + std::to_string(lock.fd()) +
                        " that another process holds now",
                    "end that process; on a file that source and destination share, let the program give up its lock");
    if (result < 0)
      throw Error("take the lock on fd " + std::to_string(lock.fd()) + " of", "task " + std::to_string(task.pid),
                  static_cast<int>(-result));
  }
}

/// In the GDT (set_thread_area(2)): before the registers that select them.
void set_segments(Tid tid, const img::thread_info_x86& info) {
  for (const img::user_desc_t& e : info.tls()) {
    user_desc d{};
    d.entry_number = e.entry_number();
    d.base_addr = e.base_addr();
    d.limit = e.limit();
    d.seg_32bit = e.seg_32bit();
    d.contents = (e.contents_h() ? 2u : 0u) | (e.contents_l() ? 1u : 0u);
    d.read_exec_only = e.read_exec_only();
    d.limit_in_pages = e.limit_in_pages();
    d.seg_not_present = e.seg_not_present();
    d.useable = e.usable();
    check(::ptrace(static_cast<__ptrace_request>(PTRACE_SET_THREAD_AREA), tid.get(), e.entry_number(), &d),
          "set a segment of", thread_name(tid.get()));
  }
}

void set_thread(const TaskImage& task, size_t i, const user_regs_struct& regs, int mem) {
  const Tid tid(task.tids[i]);
  const img::core_entry& core = task.cores[i];
  // Being inside a restartable sequence: the kernel forgot it when the area was registered.
  const img::rseq_entry& rseq = core.thread_core().rseq_entry();
  if (rseq.rseq_abi_pointer() != 0 && rseq.rseq_cs_pointer() != 0) {
    const uint64_t cs = rseq.rseq_cs_pointer();
    pwrite_full(mem, std::as_bytes(std::span(&cs, 1)), rseq.rseq_abi_pointer() + 8, thread_name(tid.get()));
  }
  set_segments(tid, core.thread_info());
  tracee::set_registers(tid, regs);
  tracee::set_xsave(tid, unpack_xsave(core.thread_info().fpregs()));
  const uint64_t mask = core.thread_core().has_blk_sigset() ? core.thread_core().blk_sigset() : core.tc().blk_sigset();
  tracee::set_signal_mask(tid, mask);
}

}  // namespace

void seize_task(const TaskImage& task, std::chrono::milliseconds timeout) {
  for (const pid_t tid : task.tids) seize(tid);
  if (task.core().tc().task_state() == kTaskStopped) stop_group(task, timeout);
}

void set_final_state(const WaitingTask& waiting, std::chrono::milliseconds timeout,
                     const std::function<void()>& register_missing) {
  const TaskImage& task = *waiting.image;
  const Deadline deadline = Deadline::in(timeout);
  const bool stopped = task.core().tc().task_state() == kTaskStopped;  // then its leader is in an event stop
  for (const pid_t tid : task.tids)
    if (!tracee::interrupt(Tid(tid))) throw Error("stop", thread_name(tid), ESRCH);
  for (const pid_t tid : task.tids)
    if (tracee::to_event_stop(Tid(tid), tid != task.pid || !stopped, deadline).ended)
      throw Error("stop", thread_name(tid), ESRCH);

  const Fd mem = open_path("/proc/" + std::to_string(task.pid) + "/mem", O_RDWR);
  std::vector<user_regs_struct> final;
  for (size_t i = 0; i < task.tids.size(); ++i) {
    final.push_back(final_registers(task.cores[i].thread_info().gpregs()));
    shorten_timeout(waiting, i, mem.get(), final[i]);
  }
  {
    RemoteCalls leader(Tid(task.pid), RemoteAddr(waiting.region + syscall_offset()), timeout);
    leader.checked("close our descriptors in", SYS_close_range,
                   {static_cast<uint64_t>(waiting.room.floor), static_cast<uint64_t>(waiting.room.end) - 1, 0});
    take_locks(task, leader, mem.get(), waiting.region + spent_offset());
    collect_stops(task, waiting.stopped_children, leader, mem.get(), waiting.region + spent_offset());
    if (register_missing) {
      register_missing();
      leader.checked("allow huge pages for", SYS_prctl,
                     {PR_SET_THP_DISABLE, task.mm.thp_disabled() ? 1u : 0u, task.task_extra().thp_flags(), 0, 0});
    }
    // Only now: from here on the task's user may look into it.
    if (task.mm.dumpable() == 1) leader.checked("set dumpable in", SYS_prctl, {PR_SET_DUMPABLE, 1, 0, 0, 0});
    // It can never be taken back, and the restorer was memory that this denies.
    if (const uint32_t mdwe = task.task_extra().mdwe(); mdwe != 0)
      leader.checked("deny executable memory to", SYS_prctl, {PR_SET_MDWE, mdwe, 0, 0, 0});
    leader.checked("unmap the restorer of", SYS_munmap, {waiting.region, waiting.region_bytes});
    leader.give_back();
  }
  for (size_t i = 0; i < task.tids.size(); ++i) set_thread(task, i, final[i], mem.get());
}

void let_go(const TaskImage& task) {
  for (const pid_t tid : task.tids) ::ptrace(PTRACE_DETACH, tid, nullptr, nullptr);
}

}  // namespace migrate
