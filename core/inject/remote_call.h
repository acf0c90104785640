// System calls executed by a ptrace-stopped thread on our behalf, one at a time, between two ptrace stops.
//
// For tasks that we made ourselves (restore): should we die in the middle, the thread is left with borrowed registers.
// A user's process is visited with harvest() instead.
#pragma once

#include <sys/user.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

#include "core/base/types.h"

namespace migrate {

/// Borrows the registers and blocks the signals of a stopped thread; gives both back on destruction. The calling thread
/// is its tracer, by PTRACE_SEIZE with PTRACE_O_TRACESYSGOOD. Calls run on the thread's stack pointer (calls use no
/// stack), so signals that cannot be blocked stay harmless: a stop signal becomes a group-stop after the visit.
class RemoteCalls {
 public:
  /// `syscall_instruction`: address of the bytes 0f 05 in an executable mapping of the thread (a vdso has one).
  RemoteCalls(Tid tid, RemoteAddr syscall_instruction, std::chrono::milliseconds timeout = std::chrono::seconds(10));
  RemoteCalls(const RemoteCalls&) = delete;
  RemoteCalls& operator=(const RemoteCalls&) = delete;
  /// give_back(), swallowing errors.
  ~RemoteCalls();

  /// The raw result: -errno on failure. Throws Error if the thread dies or does not answer in time.
  int64_t call(long number, std::array<uint64_t, 6> args = {});
  /// Throws Error("operation", "thread N", errno) on failure.
  uint64_t checked(std::string_view operation, long number, std::array<uint64_t, 6> args = {});

  /// What give_back() sets. Change it to leave the thread with other registers: with orig_rax ≥ 0 and rax a restart
  /// code (-512, -513, -514, -516) the kernel restarts the call, since the thread is left in an event stop.
  user_regs_struct& registers() { return regs_; }
  uint64_t& signal_mask() { return mask_; }
  /// Ends in a PTRACE_EVENT_STOP with registers() and signal_mask() set. Idempotent.
  void give_back();

 private:
  void run_to_syscall_stop();

  Tid tid_;
  RemoteAddr instruction_;
  std::chrono::milliseconds timeout_;
  user_regs_struct regs_{};
  uint64_t mask_ = 0;
  bool borrowed_ = false;
};

/// Finds a `syscall` instruction in the executable part of a mapping, read through `mem_fd` (/proc/PID/mem); for the
/// constructor above. Throws Error if there is none.
RemoteAddr find_syscall_instruction(int mem_fd, RemoteRange executable);

}  // namespace migrate
