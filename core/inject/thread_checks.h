// What the state of a stopped thread means for a visit: what must be refused, and from where it has to go on.
#pragma once

#include <cstdint>
#include <optional>

#include "core/freeze/stopped_tree.h"

namespace migrate {

/// Throws Refusal for a thread that cannot execute a visit's code, or would be harmed by it: one that runs in another
/// code segment (32-bit, LDT), has its system calls dispatched to itself (prctl(2), PR_SET_SYSCALL_USER_DISPATCH; older
/// kernels than 6.4 do not tell), or has a shadow stack. Asks ptrace(2).
void refuse_unvisitable(Pid task, const StoppedThread& thread);

/// The restartable sequence of a thread. The kernel forgets the critical section as soon as the thread returns to user
/// mode elsewhere.
struct RseqState {
  uint64_t pointer = 0;  ///< 0: not registered
  uint32_t size = 0;
  uint32_t signature = 0;
  uint64_t critical_section = 0;
  std::optional<uint64_t> abort_ip;  ///< the thread is inside: it must go on at its abort handler
};

/// Before anything is run in the thread.
RseqState read_rseq(const StoppedThread& thread, int mem_fd);

}  // namespace migrate
