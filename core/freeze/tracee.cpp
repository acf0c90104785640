#include "core/freeze/tracee.h"

#include <cpuid.h>
#include <elf.h>
#include <signal.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include <string>

#include "core/base/error.h"

namespace migrate::tracee {
namespace {

std::string name(Tid tid) { return "thread " + std::to_string(tid.get()); }

long request(int what, Tid tid, uintptr_t addr, uintptr_t data) {
  return ::ptrace(static_cast<__ptrace_request>(what), tid.get(), addr, data);
}

uintptr_t address_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

/// CPUID leaf 0xD: the XSAVE area with every feature the CPU has.
size_t xsave_area_size() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx) == 0 || ecx < 576) return 4096;
  return ecx;
}

}  // namespace

int Stop::group_stop_signal() const {
  if (!event_stop()) return 0;
  const int s = signal();
  return s == SIGSTOP || s == SIGTSTP || s == SIGTTIN || s == SIGTTOU ? s : 0;
}

int seize(Tid tid, bool suspend_seccomp) {
  const uintptr_t options = PTRACE_O_TRACESYSGOOD;
  if (suspend_seccomp && request(PTRACE_SEIZE, tid, 0, options | PTRACE_O_SUSPEND_SECCOMP) == 0) return 0;
  return request(PTRACE_SEIZE, tid, 0, options) == 0 ? 0 : errno;
}

bool interrupt(Tid tid) { return request(PTRACE_INTERRUPT, tid, 0, 0) == 0; }

bool resume(Tid tid, int how, int signal) { return request(how, tid, 0, static_cast<uintptr_t>(signal)) == 0; }

std::optional<Stop> poll(Tid tid) {
  int status = 0;
  const pid_t r = ::wait4(tid.get(), &status, __WALL | WNOHANG, nullptr);
  if (r == 0) return std::nullopt;
  if (r < 0) return Stop{0, true};
  return Stop{status, !WIFSTOPPED(status)};
}

std::optional<Stop> wait(Tid tid, const Deadline& deadline) {
  // Stops mostly come within microseconds: look often first, sleep later. Yielding instead of sleeping would give away
  // a time slice to each runnable task of a busy machine, 200 times a stop, and pass every deadline.
  constexpr long kLooks = 64, kShortNaps = 500;
  for (long tries = 0;; ++tries) {
    if (auto stop = poll(tid)) return stop;
    if (tries < kLooks) continue;
    if (deadline.passed()) return std::nullopt;
    const timespec nap{0, tries < kLooks + kShortNaps ? 20'000 : 1'000'000};
    ::nanosleep(&nap, nullptr);
  }
}

Stop to_event_stop(Tid tid, bool running, const Deadline& deadline) {
  if (!interrupt(tid)) return Stop{0, true};
  if (!running) resume(tid, PTRACE_CONT);
  for (;;) {
    const auto stop = wait(tid, deadline);
    if (!stop) throw Error(name(tid) + " does not stop in time");
    if (stop->ended || stop->event_stop()) return *stop;
    // The stop has cleared the pending interrupt.
    interrupt(tid);
    resume(tid, PTRACE_CONT, stop->signal_delivery() ? stop->signal() : 0);
  }
}

user_regs_struct registers(Tid tid) {
  user_regs_struct regs{};
  iovec iov{&regs, sizeof regs};
  check(request(PTRACE_GETREGSET, tid, NT_PRSTATUS, address_of(&iov)), "read the registers of", name(tid));
  // The 32-bit layout is shorter; a 64-bit task may also be in a 32-bit code segment.
  if (iov.iov_len != sizeof regs || regs.cs == 0x23) {
    throw Refusal(name(tid) + " runs 32-bit code", "only 64-bit programs can be moved");
  }
  return regs;
}

void set_registers(Tid tid, const user_regs_struct& regs) {
  user_regs_struct copy = regs;
  iovec iov{&copy, sizeof copy};
  check(request(PTRACE_SETREGSET, tid, NT_PRSTATUS, address_of(&iov)), "set the registers of", name(tid));
}

void set_call(user_regs_struct& regs, RemoteAddr at, long number, const std::array<uint64_t, 6>& args) {
  regs.rip = at.get();
  regs.rax = static_cast<uint64_t>(number);
  regs.orig_rax = ~0ull;
  regs.rdi = args[0];
  regs.rsi = args[1];
  regs.rdx = args[2];
  regs.r10 = args[3];
  regs.r8 = args[4];
  regs.r9 = args[5];
}

uint64_t signal_mask(Tid tid) {
  uint64_t mask = 0;
  check(request(PTRACE_GETSIGMASK, tid, sizeof mask, address_of(&mask)), "read the signal mask of", name(tid));
  return mask;
}

void set_signal_mask(Tid tid, uint64_t mask) {
  check(request(PTRACE_SETSIGMASK, tid, sizeof mask, address_of(&mask)), "set the signal mask of", name(tid));
}

std::vector<std::byte> xsave(Tid tid) {
  static const size_t size = xsave_area_size();
  std::vector<std::byte> area(size);
  iovec iov{area.data(), area.size()};
  check(request(PTRACE_GETREGSET, tid, NT_X86_XSTATE, address_of(&iov)), "read the XSAVE area of", name(tid));
  area.resize(iov.iov_len);
  return area;
}

void set_xsave(Tid tid, std::span<const std::byte> area) {
  std::vector<std::byte> copy(area.begin(), area.end());
  iovec iov{copy.data(), copy.size()};
  check(request(PTRACE_SETREGSET, tid, NT_X86_XSTATE, address_of(&iov)), "set the XSAVE area of", name(tid));
}

}  // namespace migrate::tracee
