// Machine code of the slots in the task's vdso tail: what a visited thread executes outside of the area M, and its way
// back. Layout and reasons: core/inject/README.md.
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/types.h"

namespace migrate {

/// Where a thread has to go on, by itself, as if it had not been visited.
struct ReturnState {
  user_regs_struct regs;  ///< as it was stopped
  uint64_t sigmask = 0;
};

/// A slot: bytes for address `base`, and the addresses in it.
struct SlotCode {
  std::vector<std::byte> bytes;
  RemoteAddr entry;
  RemoteAddr second;  ///< leader only: executes a call, then `leave`
  RemoteAddr leave;   ///< leader only: unmaps M, then goes back
};

/// The leader's: `entry` executes one system call (the registers are set by the tracer), which maps M; then
/// unmap M [area, area+area_bytes) and go back. When the call did not return `area`, nothing is unmapped.
/// With the trap flag set, a thread goes back by `iret`, so that the trap comes behind its next instruction.
SlotCode leader_slot(RemoteAddr base, const ReturnState& back, RemoteAddr area, uint32_t area_bytes);

/// Addresses in M for a thread's slot.
struct ThreadSlotTargets {
  RemoteAddr altstack, tid_address, pdeath_signal;  ///< results
  RemoteAddr attributes;                            ///< eight bytes for each (attributes.h)
  RemoteAddr done, stay;                            ///< futexes
  uint32_t stay_value = 0;                          ///< wait while `stay` has this
  uint64_t own_number = 0, witness = 0;             ///< of the task and the witness, for kcmp(2); 0: not asked
  int64_t until_sec = 0, until_nsec = 0;            ///< CLOCK_MONOTONIC as the task reads it: end of the wait
};

/// Registers in which a thread that waits in its slot holds the results of its calls.
struct ThreadSlotResults {
  int64_t altstack, tid_address, pdeath_signal, securebits, seen_witness;
  uint64_t attributes;  ///< a byte for each, the last one lowest: the result, above 127 where there is none
  explicit ThreadSlotResults(const user_regs_struct& r);
};

/// Another thread's: its calls, `done` is counted up, wait, go back. Touches M by system calls only.
SlotCode thread_slot(RemoteAddr base, const ReturnState& back, const ThreadSlotTargets& targets);

/// Upper bounds of the sizes of the two.
inline constexpr size_t kLeaderSlotBytes = 384;
inline constexpr size_t kThreadSlotBytes = 896;

}  // namespace migrate
