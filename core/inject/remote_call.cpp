#include "core/inject/remote_call.h"

#include <span>
#include <string>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/tracee.h"

namespace migrate {
namespace {

constexpr uint64_t kEverySignal = ~uint64_t{0};

std::string name(Tid tid) { return "thread " + std::to_string(tid.get()); }

}  // namespace

RemoteCalls::RemoteCalls(Tid tid, RemoteAddr syscall_instruction, std::chrono::milliseconds timeout)
    : tid_(tid), instruction_(syscall_instruction), timeout_(timeout) {
  regs_ = tracee::registers(tid_);
  mask_ = tracee::signal_mask(tid_);
  tracee::set_signal_mask(tid_, kEverySignal);
  borrowed_ = true;
}

RemoteCalls::~RemoteCalls() {
  try {
    give_back();
  } catch (const Error&) {
    // The thread died, which its owner finds out by waiting for it.
  }
}

void RemoteCalls::run_to_syscall_stop() {
  const Deadline deadline = Deadline::in(timeout_);
  int signal = 0;
  for (;;) {
    if (!tracee::resume(tid_, PTRACE_SYSCALL, signal)) throw Error(name(tid_) + " died during a remote call");
    const auto stop = tracee::wait(tid_, deadline);
    if (!stop) throw Error(name(tid_) + " does not finish a remote call in time");
    if (stop->ended) throw Error(name(tid_) + " died during a remote call");
    if (stop->syscall_stop()) return;
    // Only SIGSTOP gets here: delivered, it begins a group-stop, which a continued thread runs through.
    signal = stop->signal_delivery() ? stop->signal() : 0;
  }
}

int64_t RemoteCalls::call(long number, std::array<uint64_t, 6> args) {
  user_regs_struct regs = regs_;
  tracee::set_call(regs, instruction_, number, args);
  tracee::set_registers(tid_, regs);
  run_to_syscall_stop();
  run_to_syscall_stop();
  return static_cast<int64_t>(tracee::registers(tid_).rax);
}

uint64_t RemoteCalls::checked(std::string_view operation, long number, std::array<uint64_t, 6> args) {
  const int64_t result = call(number, args);
  if (result < 0 && result > -4096) throw Error(operation, name(tid_), static_cast<int>(-result));
  return static_cast<uint64_t>(result);
}

void RemoteCalls::give_back() {
  if (!borrowed_) return;
  borrowed_ = false;
  // A thread that has just been resumed from a system call stop has no restart logic ahead: go through an event stop.
  user_regs_struct neutral = tracee::registers(tid_);
  neutral.orig_rax = ~0ull;
  tracee::set_registers(tid_, neutral);
  const auto stop = tracee::to_event_stop(tid_, false, Deadline::in(timeout_));
  if (stop.ended) throw Error(name(tid_) + " died during a remote call");
  tracee::set_signal_mask(tid_, mask_);
  tracee::set_registers(tid_, regs_);
}

RemoteAddr find_syscall_instruction(int mem_fd, RemoteRange executable) {
  std::vector<std::byte> bytes(executable.bytes());
  const size_t got = pread_full(mem_fd, bytes, executable.start.get(), "the executable pages");
  for (size_t i = 0; i + 1 < got; ++i) {
    if (bytes[i] == std::byte{0x0f} && bytes[i + 1] == std::byte{0x05}) return executable.start + i;
  }
  throw Error("no syscall instruction in the executable mapping");
}

}  // namespace migrate
