#include "core/inject/thread_checks.h"

#include <sys/ptrace.h>
#include <sys/uio.h>

#include <string>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/kernel_abi.h"

namespace migrate {
namespace {

constexpr uint64_t kUserCode64 = 0x33;    // selector of 64-bit user code
constexpr int kShadowStackState = 0x204;  // NT_X86_SHSTK, Linux 6.6

bool dispatches_calls(Tid tid) {
  ptrace_sud_config config{};
  return ::ptrace(static_cast<__ptrace_request>(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG), tid.get(), sizeof config,
                  &config) == 0 &&
         config.mode != 0;
}

bool has_shadow_stack(Tid tid) {
  uint64_t pointer = 0;
  iovec iov{&pointer, sizeof pointer};
  return ::ptrace(PTRACE_GETREGSET, tid.get(), kShadowStackState, &iov) == 0;
}

}  // namespace

void refuse_unvisitable(Pid task, const StoppedThread& thread) {
  const auto refuse = [&](const char* what, const char* remedy) {
    throw Refusal("thread " + std::to_string(thread.tid.get()) + " of task " + std::to_string(task.get()) + what,
                  remedy);
  };
  if (thread.regs.cs != kUserCode64) refuse(" runs code that is not 64-bit", "only 64-bit programs can be moved");
  // A call of ours would be dispatched, too: SIGSYS at a place that no handler expects.
  if (dispatches_calls(thread.tid))
    refuse(" has its system calls dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH)",
           "run the program without what turns that on (as Wine does)");
  if (has_shadow_stack(thread.tid)) refuse(" has a shadow stack", "run it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
}

RseqState read_rseq(const StoppedThread& thread, int mem_fd) {
  struct __ptrace_rseq_configuration config {};
  RseqState state;
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), thread.tid.get(), sizeof config, &config) <
          0 ||
      config.rseq_abi_pointer == 0)
    return state;
  state.pointer = config.rseq_abi_pointer;
  state.size = config.rseq_abi_size;
  state.signature = config.signature;
  constexpr off_t kRseqCsAt = 8;  // struct rseq: cpu_id_start, cpu_id, rseq_cs
  uint64_t descriptor = 0;
  if (::pread(mem_fd, &descriptor, sizeof descriptor, static_cast<off_t>(state.pointer) + kRseqCsAt) !=
          sizeof descriptor ||
      descriptor == 0)
    return state;
  struct {
    uint32_t version, flags;
    uint64_t start_ip, post_commit_offset, abort_ip;
  } section{};
  if (::pread(mem_fd, &section, sizeof section, static_cast<off_t>(descriptor)) != sizeof section) return state;
  state.critical_section = descriptor;
  if (thread.regs.rip - section.start_ip >= section.post_commit_offset) return state;
  // As the kernel does: a handler is only one with the signature before it (rseq(2)).
  uint32_t signature = 0;
  if (::pread(mem_fd, &signature, sizeof signature, static_cast<off_t>(section.abort_ip - sizeof signature)) ==
          sizeof signature &&
      signature == state.signature)
    state.abort_ip = section.abort_ip;
  return state;
}

}  // namespace migrate
