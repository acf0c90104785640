// The ptrace(2) requests used on one seized thread, with their waits. Every call must come from the tracer thread.
//
// The death of the thread is an ordinary outcome where a Stop is returned (Stop::ended); the other calls throw Error
// with ESRCH for a thread that is gone or not stopped.
#pragma once

#include <sys/ptrace.h>
#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/types.h"

namespace migrate::tracee {

/// What wait4(2) told about a thread.
struct Stop {
  int status = 0;
  bool ended = false;  ///< exited, killed, or no longer ours

  int signal() const { return (status >> 8) & 0x7f; }
  /// PTRACE_EVENT_STOP: our interrupt, or a group-stop.
  bool event_stop() const { return !ended && (status >> 16) == PTRACE_EVENT_STOP; }
  /// The stop signal of a group-stop, else 0.
  int group_stop_signal() const;
  /// Entry or exit of a system call (needs PTRACE_O_TRACESYSGOOD).
  bool syscall_stop() const { return !ended && (status >> 16) == 0 && ((status >> 8) & 0xff) == (5 | 0x80); }
  /// A signal is about to be delivered; it is lost unless it is handed back with resume().
  bool signal_delivery() const { return !ended && (status >> 16) == 0 && !syscall_stop(); }
};

/// Seizes; returns 0 or the errno. Tries PTRACE_O_SUSPEND_SECCOMP where asked for, without it where that is refused.
int seize(Tid tid, bool suspend_seccomp);
/// PTRACE_INTERRUPT. Pending interrupts are forgotten by the kernel at any stop. False: the thread is gone.
bool interrupt(Tid tid);
/// Resumes with PTRACE_CONT, PTRACE_SYSCALL or PTRACE_DETACH. False: the thread is gone.
bool resume(Tid tid, int request, int signal = 0);
/// The next report; nullopt when the deadline has passed.
std::optional<Stop> wait(Tid tid, const Deadline& deadline);
/// Whether there is a report now.
std::optional<Stop> poll(Tid tid);

/// Interrupts and waits until the thread is in a PTRACE_EVENT_STOP. A signal that shows up first is delivered. The
/// thread may be running, or stopped at a system call (it then stops again without running user code: only from an
/// event stop does the kernel apply its restart logic to the registers set).
Stop to_event_stop(Tid tid, bool running, const Deadline& deadline);

user_regs_struct registers(Tid tid);  ///< throws Refusal for a 32-bit task
void set_registers(Tid tid, const user_regs_struct& regs);
/// In `regs`: a system call to be made at `at`, where a syscall instruction is. No restart logic applies to them.
void set_call(user_regs_struct& regs, RemoteAddr at, long number, const std::array<uint64_t, 6>& args);
/// Of EFLAGS: a trap after each instruction.
inline constexpr uint64_t kTrapFlag = 0x100;
uint64_t signal_mask(Tid tid);
void set_signal_mask(Tid tid, uint64_t mask);
/// NT_X86_XSTATE: XSAVE standard format.
std::vector<std::byte> xsave(Tid tid);
void set_xsave(Tid tid, std::span<const std::byte> area);

}  // namespace migrate::tracee
