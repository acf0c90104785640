#include "core/inject/slot_code.h"

#include <linux/futex.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <utility>

#include "core/base/error.h"
#include "core/freeze/tracee.h"
#include "core/inject/attributes.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

namespace migrate {
namespace {

/// x86-64's numbers of the general registers.
enum Reg : uint8_t { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 };

constexpr uint32_t kFutex2Size32 = 2;

class Assembler {
 public:
  explicit Assembler(RemoteAddr base) : base_(base) {}

  RemoteAddr here() const { return base_ + bytes_.size(); }
  size_t size() const { return bytes_.size(); }
  std::vector<std::byte> take() { return std::move(bytes_); }

  void raw(std::initializer_list<uint8_t> code) {
    for (const uint8_t b : code) bytes_.push_back(std::byte{b});
  }
  void imm32(uint32_t v) {
    for (int i = 0; i < 4; ++i) bytes_.push_back(std::byte(v >> (8 * i)));
  }
  void imm64(uint64_t v) {
    for (int i = 0; i < 8; ++i) bytes_.push_back(std::byte(v >> (8 * i)));
  }
  void align8() {
    while (bytes_.size() % 8 != 0) bytes_.push_back(std::byte{0});
  }
  /// mov r64, imm64 (changes no flags).
  void load(Reg r, uint64_t v) {
    raw({static_cast<uint8_t>(r < 8 ? 0x48 : 0x49), static_cast<uint8_t>(0xb8 + (r & 7))});
    imm64(v);
  }
  /// mov r32, imm32: zero-extended, half the size.
  void load32(Reg r, uint32_t v) {
    if (r >= 8) raw({0x41});
    raw({static_cast<uint8_t>(0xb8 + (r & 7))});
    imm32(v);
  }
  /// mov to, rax
  void keep_result(Reg to) {
    raw({static_cast<uint8_t>(to < 8 ? 0x48 : 0x49), 0x89, static_cast<uint8_t>(0xc0 + (to & 7))});
  }
  void syscall() { raw({0x0f, 0x05}); }
  void syscall(long number) {
    load32(rax, static_cast<uint32_t>(number));
    syscall();
  }
  void patch8(size_t at, uint8_t v) { bytes_.at(at) = std::byte(v); }
  void patch32(size_t at, uint32_t v) {
    for (size_t i = 0; i < 4; ++i) bytes_.at(at + i) = std::byte(v >> (8 * i));
  }

 private:
  RemoteAddr base_;
  std::vector<std::byte> bytes_;
};

/// Constants of a slot, placed before its code. From `target` on they are a frame for iret.
struct Data {
  RemoteAddr all_signals, mask, target, flags;
};

bool traps(const user_regs_struct& r) { return (r.eflags & tracee::kTrapFlag) != 0; }

bool interrupted_call(const user_regs_struct& r) {
  if (static_cast<int64_t>(r.orig_rax) < 0) return false;
  const int64_t result = static_cast<int64_t>(r.rax);
  return result == -512 || result == -513 || result == -514 || result == -516;
}

Data emit_data(Assembler& a, const ReturnState& back) {
  Data d;
  d.all_signals = a.here();
  a.imm64(~uint64_t{0});
  d.mask = a.here();
  a.imm64(back.sigmask);
  d.target = a.here();
  // The kernel would step back to the call's instruction (2 bytes: syscall or int 0x80).
  a.imm64(interrupted_call(back.regs) ? back.regs.rip - 2 : back.regs.rip);
  a.imm64(back.regs.cs);
  d.flags = a.here();
  a.imm64(back.regs.eflags);
  a.imm64(back.regs.rsp);
  a.imm64(back.regs.ss);
  return d;
}

void set_signal_mask(Assembler& a, RemoteAddr mask) {
  a.load32(rdi, SIG_SETMASK);
  a.load(rsi, mask.get());
  a.load32(rdx, 0);
  a.load32(r10, 8);
  a.syscall(SYS_rt_sigprocmask);
}

// Signals stay blocked while rsp points at the flags: a frame could not be written there. From the popf on only
// instructions that leave the flags alone. With the trap flag among them each would trap: then flags, rsp and target
// are loaded in one, at the price of one instruction's time in which a signal would find rsp elsewhere.
void emit_return(Assembler& a, const Data& d, const user_regs_struct& r) {
  set_signal_mask(a, d.all_signals);
  if (!traps(r)) {
    a.load(rsp, d.flags.get());
    a.raw({0x9d});  // popfq
  }
  a.load(rsp, r.rsp);
  set_signal_mask(a, d.mask);
  uint64_t result = r.rax;
  if (interrupted_call(r)) {
    result = static_cast<int64_t>(r.rax) == -516 ? static_cast<uint64_t>(SYS_restart_syscall) : r.orig_rax;
  }
  const std::array<uint64_t, 16> values = {result, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi,
                                           r.r8,   r.r9,  r.r10, r.r11, r.r12, r.r13, r.r14, r.r15};
  for (uint8_t i = 0; i < 16; ++i) a.load(static_cast<Reg>(i), values[i]);
  if (traps(r)) {
    a.load(rsp, d.target.get());
    a.raw({0x48, 0xcf});  // iretq
    return;
  }
  a.raw({0xff, 0x25});  // jmp *[rip + disp32]
  a.imm32(static_cast<uint32_t>(d.target - (a.here() + 4)));
}

SlotCode finish(Assembler& a, SlotCode slot, size_t limit) {
  slot.bytes = a.take();
  if (slot.bytes.size() > limit) throw Error("slot code is longer than its bound");
  return slot;
}

}  // namespace

SlotCode leader_slot(RemoteAddr base, const ReturnState& back, RemoteAddr area, uint32_t area_bytes) {
  Assembler a(base);
  const Data data = emit_data(a, back);
  SlotCode slot;
  slot.second = a.here();
  a.syscall();
  a.raw({0xeb, 0});  // jmp leave
  const size_t skip = a.size();
  slot.entry = a.here();
  a.syscall();
  a.load(rcx, area.get());
  a.raw({0x48, 0x39, 0xc8});  // cmp rax, rcx
  a.raw({0x0f, 0x85});        // jne return: somebody else's mapping must not be unmapped
  const size_t jump = a.size();
  a.imm32(0);
  slot.leave = a.here();
  a.patch8(skip - 1, static_cast<uint8_t>(a.size() - skip));
  a.load(rdi, area.get());
  a.load32(rsi, area_bytes);
  a.syscall(SYS_munmap);
  a.patch32(jump, static_cast<uint32_t>(a.size() - (jump + 4)));
  emit_return(a, data, back.regs);
  return finish(a, std::move(slot), kLeaderSlotBytes);
}

ThreadSlotResults::ThreadSlotResults(const user_regs_struct& r)
    : altstack(static_cast<int64_t>(r.rbx)),
      tid_address(static_cast<int64_t>(r.rbp)),
      pdeath_signal(static_cast<int64_t>(r.r12)),
      securebits(static_cast<int64_t>(r.r13)),
      seen_witness(static_cast<int64_t>(r.r14)),
      attributes(r.r15) {}

SlotCode thread_slot(RemoteAddr base, const ReturnState& back, const ThreadSlotTargets& t) {
  Assembler a(base);
  const Data data = emit_data(a, back);
  const RemoteAddr waiter = a.here();  // struct futex_waitv: value, address, flags, reserved
  a.imm64(t.stay_value);
  a.imm64(t.stay.get());
  a.imm32(kFutex2Size32);
  a.imm32(0);
  const RemoteAddr until = a.here();
  a.imm64(static_cast<uint64_t>(t.until_sec));
  a.imm64(static_cast<uint64_t>(t.until_nsec));

  SlotCode slot;
  slot.entry = a.here();
  a.load32(rdi, 0);
  a.load(rsi, t.altstack.get());
  a.syscall(SYS_sigaltstack);
  a.keep_result(rbx);
  const auto prctl = [&](int option, RemoteAddr argument, Reg result) {
    a.load32(rdi, static_cast<uint32_t>(option));
    a.load(rsi, argument.get());
    a.load32(rdx, 0);
    a.load32(r10, 0);
    a.load32(r8, 0);
    a.syscall(SYS_prctl);
    a.keep_result(result);
  };
  prctl(PR_GET_TID_ADDRESS, t.tid_address, rbp);
  prctl(PR_GET_PDEATHSIG, t.pdeath_signal, r12);
  prctl(PR_GET_SECUREBITS, RemoteAddr(0), r13);
  a.load32(rdi, static_cast<uint32_t>(t.own_number));
  a.load32(rsi, static_cast<uint32_t>(t.witness == 0 ? t.own_number : t.witness));
  a.load32(rdx, KCMP_VM);
  a.load32(r10, 0);
  a.load32(r8, 0);
  a.syscall(SYS_kcmp);
  a.keep_result(r14);

  a.load32(r15, 0);
  uint64_t at = t.attributes.get();
  std::array<std::optional<uint64_t>, 5> loaded;  // calls leave these registers alone
  for (const Attribute& attribute : thread_attributes()) {
    const auto args = with_value(attribute.get_args, at);
    const std::array<Reg, 5> registers{rdi, rsi, rdx, r10, r8};
    for (size_t i = 0; i < args.size(); ++i) {
      if (std::exchange(loaded[i], args[i]) == args[i]) continue;
      args[i] >> 32 == 0 ? a.load32(registers[i], static_cast<uint32_t>(args[i])) : a.load(registers[i], args[i]);
    }
    a.syscall(attribute.get);
    a.raw({0x49, 0xc1, 0xe7, 0x08});  // shl r15, 8
    a.raw({0x0f, 0xb6, 0xc0});        // movzx eax, al
    a.raw({0x49, 0x09, 0xc7});        // or r15, rax
    at += sizeof(uint64_t);
  }

  // FUTEX_WAKE_OP counts up in the kernel: a store of ours would fault were M gone.
  a.load(rdi, t.done.get());
  a.load32(rsi, FUTEX_WAKE_OP);
  a.load32(rdx, 1);
  a.load32(r10, 0);
  a.load(r8, t.done.get());
  a.load32(r9, FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0));
  a.syscall(SYS_futex);

  a.load(rdi, waiter.get());
  a.load32(rsi, 1);
  a.load32(rdx, 0);
  a.load(r10, until.get());
  a.load32(r8, CLOCK_MONOTONIC);
  a.syscall(SYS_futex_waitv);

  // Pass the news of the tracer's death on to the leader.
  a.load(rdi, t.stay.get());
  a.load32(rsi, FUTEX_WAKE);
  a.load32(rdx, 2);
  a.syscall(SYS_futex);
  emit_return(a, data, back.regs);
  return finish(a, std::move(slot), kThreadSlotBytes);
}

}  // namespace migrate
