#include "core/inject/domain_witness.h"

#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "core/base/fd.h"
#include "core/base/types.h"

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#ifndef __WALL
#define __WALL 0x40000000
#endif

extern "C" const char __executable_start[], etext[];

namespace migrate {
namespace {

constexpr unsigned long kVersion = 1;  // LANDLOCK_CREATE_RULESET_VERSION

/// Without an exit signal: no SIGCHLD, and nobody's wait(2) for any child finds it.
pid_t raw_fork(unsigned long flags) { return static_cast<pid_t>(::syscall(SYS_clone, flags, 0, 0, 0, 0)); }

/// Becomes a dead process that its own user may look at (dumpable at its end) without ever having shown anything of our
/// memory or descriptors to that user.
[[noreturn]] void turn_into_witness(uid_t uid, gid_t gid) {
  // System calls only: the C library's locks may be held by threads that are not here.
  const uint64_t all_signals = ~uint64_t{0};
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all_signals, nullptr, sizeof all_signals);
  ::syscall(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
  ::syscall(SYS_close_range, 0, ~0u, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2]{};
  if (::syscall(SYS_setgroups, 0, nullptr) != 0 || ::syscall(SYS_setresgid, gid, gid, gid) != 0 ||
      ::syscall(SYS_setresuid, uid, uid, uid) != 0 || ::syscall(SYS_capset, &header, none) != 0)
    ::_exit(1);
  // The kernel would write there, and kill it when it is gone.
  constexpr int kUnregister = 1;
  constexpr uint32_t kSignature = 0x53053053;
  char* const rseq = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  if (__rseq_size != 0 && ::syscall(SYS_rseq, rseq, 32, kUnregister, kSignature) != 0 &&
      ::syscall(SYS_rseq, rseq, __rseq_size, kUnregister, kSignature) != 0)
    ::_exit(1);
  const uint64_t text = page_floor(reinterpret_cast<uint64_t>(__executable_start));
  const uint64_t text_end = page_ceil(reinterpret_cast<uint64_t>(etext));
  // All but the code is unmapped before it becomes dumpable: no stack from here on.
  asm volatile(
      "mov $11, %%eax\n xor %%edi, %%edi\n mov %[text], %%rsi\n syscall\n"                         // munmap
      "mov $11, %%eax\n mov %[end], %%rdi\n mov %[top], %%rsi\n sub %[end], %%rsi\n syscall\n"     // munmap
      "mov $157, %%eax\n mov $4, %%edi\n mov $1, %%esi\n xor %%edx, %%edx\n xor %%r10d, %%r10d\n"  // PR_SET_DUMPABLE
      "xor %%r8d, %%r8d\n syscall\n"
      "mov $231, %%eax\n xor %%edi, %%edi\n syscall\n"  // exit_group
      "ud2\n"
      :
      : [text] "b"(text), [end] "r"(text_end), [top] "r"(kUserEnd)
      : "rax", "rdi", "rsi", "rdx", "r8", "r10", "rcx", "r11", "memory");
  __builtin_unreachable();
}

int wait_status(pid_t pid, bool reap) {
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | __WALL | (reap ? 0 : WNOWAIT)) != 0) {
    if (errno != EINTR) return -1;
  }
  return info.si_code == CLD_EXITED ? info.si_status : -1;
}

/// In another pid namespace only a child of one that has entered it can be made; it becomes ours all the same.
pid_t fork_into(const Fd& pid_namespace, uid_t uid, gid_t gid) {
  int ends[2];
  check(::pipe2(ends, O_CLOEXEC), "make", "a pipe");
  const Fd out(ends[0]);
  Fd in(ends[1]);
  const pid_t between = raw_fork(0);
  if (between == 0) {
    if (::syscall(SYS_setns, pid_namespace.get(), CLONE_NEWPID) != 0) ::_exit(1);
    const pid_t witness = raw_fork(CLONE_PARENT);
    if (witness == 0) turn_into_witness(uid, gid);
    ::_exit(::syscall(SYS_write, in.get(), &witness, sizeof witness) == sizeof witness ? 0 : 1);
  }
  check(between, "fork");
  in.reset();
  pid_t witness = -1;
  const size_t got = read_full(out.get(), std::as_writable_bytes(std::span(&witness, 1)), "a pipe");
  wait_status(between, true);
  return got == sizeof witness ? witness : -1;
}

uint32_t real_id(const ThreadStatus& status, const std::string& key) {
  return parse_first_number<uint32_t>(status_field(status, key), "/proc/PID/status: " + key);
}

}  // namespace

DomainWitnesses::DomainWitnesses()
    : landlock_(::syscall(SYS_landlock_create_ruleset, nullptr, 0, kVersion) > 0),
      our_namespace_(read_link_at(AT_FDCWD, "/proc/self/ns/pid")) {}

DomainWitnesses::~DomainWitnesses() {
  for (const Witness& witness : made_) wait_status(witness.pid, true);
}

pid_t DomainWitnesses::for_task(const ProcDir& task, const ThreadStatus& status) {
  if (!landlock_) return 0;
  Witness wanted{};
  wanted.uid = real_id(status, "Uid");
  wanted.gid = real_id(status, "Gid");
  wanted.namespace_link = task.link("ns/pid");
  for (const Witness& w : made_)
    if (w.uid == wanted.uid && w.gid == wanted.gid && w.namespace_link == wanted.namespace_link) return w.number;
  const bool here = our_namespace_ == wanted.namespace_link;
  if (here) {
    wanted.pid = raw_fork(0);
    if (wanted.pid == 0) turn_into_witness(wanted.uid, wanted.gid);
  } else {
    wanted.pid = fork_into(task.open("ns/pid", O_RDONLY), wanted.uid, wanted.gid);
  }
  const std::string what = "a process with the credentials of task " + std::to_string(task.pid());
  check(wanted.pid, "make", what);
  if (wait_status(wanted.pid, false) != 0) {
    wait_status(wanted.pid, true);
    throw Error("make " + what + ": it failed");
  }
  wanted.number = wanted.pid;
  made_.push_back(wanted);  // from now on it is reaped
  if (!here) made_.back().number = innermost(status_field(ProcDir(wanted.pid).status(), "NSpid"));
  return made_.back().number;
}

}  // namespace migrate
