// All general, x87, SSE, AVX and AVX-512 registers hold known values in a thread that spins without a system call.
#include <asm/prctl.h>

#include <cstddef>
#include <thread>

#include "workload.h"

using namespace workload;

struct alignas(64) RegisterState {
  uint8_t zmm[32][64];
  uint64_t k[8];
  uint64_t gp[15];  // rax rbx rcx rdx rsi rdi rbp r8 to r15
  uint64_t flags;
  uint32_t mxcsr;
  uint16_t fcw;
  double st[4];
};

extern "C" {
RegisterState registers_in;
RegisterState registers_out;
std::atomic<uint32_t> registers_stop;
std::atomic<uint64_t> registers_turns;
uint64_t registers_rsp;
// 0: SSE only, 1: AVX, 2: AVX-512.
uint32_t registers_level;
/// Loads everything from registers_in, spins until registers_stop, stores everything to registers_out.
void registers_spin();
}

static_assert(offsetof(RegisterState, k) == 2048 && offsetof(RegisterState, gp) == 2112 &&
              offsetof(RegisterState, flags) == 2232 && offsetof(RegisterState, mxcsr) == 2240 &&
              offsetof(RegisterState, fcw) == 2244 && offsetof(RegisterState, st) == 2248);

asm(R"(
.text
.globl registers_spin
.type registers_spin, @function
registers_spin:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, registers_rsp(%rip)
  fninit
  fldcw registers_in + 2244(%rip)
  fldl registers_in + 2248(%rip)
  fldl registers_in + 2256(%rip)
  fldl registers_in + 2264(%rip)
  fldl registers_in + 2272(%rip)
  ldmxcsr registers_in + 2240(%rip)
  mov registers_level(%rip), %eax
  cmp $2, %eax
  je 3f
  cmp $1, %eax
  je 2f
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  movdqa registers_in + \n * 64(%rip), %xmm\n
  .endr
  jmp 4f
2:
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  vmovdqa registers_in + \n * 64(%rip), %ymm\n
  .endr
  jmp 4f
3:
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
  vmovdqa64 registers_in + \n * 64(%rip), %zmm\n
  .endr
  kmovw registers_in + 2048 + 8(%rip), %k1
  kmovw registers_in + 2048 + 16(%rip), %k2
  kmovw registers_in + 2048 + 24(%rip), %k3
  kmovw registers_in + 2048 + 32(%rip), %k4
  kmovw registers_in + 2048 + 40(%rip), %k5
  kmovw registers_in + 2048 + 48(%rip), %k6
  kmovw registers_in + 2048 + 56(%rip), %k7
4:
  mov registers_in + 2112(%rip), %rax
  mov registers_in + 2120(%rip), %rbx
  mov registers_in + 2128(%rip), %rcx
  mov registers_in + 2136(%rip), %rdx
  mov registers_in + 2144(%rip), %rsi
  mov registers_in + 2152(%rip), %rdi
  mov registers_in + 2160(%rip), %rbp
  mov registers_in + 2168(%rip), %r8
  mov registers_in + 2176(%rip), %r9
  mov registers_in + 2184(%rip), %r10
  mov registers_in + 2192(%rip), %r11
  mov registers_in + 2200(%rip), %r12
  mov registers_in + 2208(%rip), %r13
  mov registers_in + 2216(%rip), %r14
  mov registers_in + 2224(%rip), %r15
5:
  lock incq registers_turns(%rip)
  cmpl $0, registers_stop(%rip)
  je 5b
  mov %rax, registers_out + 2112(%rip)
  mov %rbx, registers_out + 2120(%rip)
  mov %rcx, registers_out + 2128(%rip)
  mov %rdx, registers_out + 2136(%rip)
  mov %rsi, registers_out + 2144(%rip)
  mov %rdi, registers_out + 2152(%rip)
  mov %rbp, registers_out + 2160(%rip)
  mov %r8, registers_out + 2168(%rip)
  mov %r9, registers_out + 2176(%rip)
  mov %r10, registers_out + 2184(%rip)
  mov %r11, registers_out + 2192(%rip)
  mov %r12, registers_out + 2200(%rip)
  mov %r13, registers_out + 2208(%rip)
  mov %r14, registers_out + 2216(%rip)
  mov %r15, registers_out + 2224(%rip)
  mov registers_level(%rip), %eax
  cmp $2, %eax
  je 7f
  cmp $1, %eax
  je 6f
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  movdqa %xmm\n, registers_out + \n * 64(%rip)
  .endr
  jmp 8f
6:
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  vmovdqa %ymm\n, registers_out + \n * 64(%rip)
  .endr
  jmp 8f
7:
  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
  vmovdqa64 %zmm\n, registers_out + \n * 64(%rip)
  .endr
  kmovw %k1, registers_out + 2048 + 8(%rip)
  kmovw %k2, registers_out + 2048 + 16(%rip)
  kmovw %k3, registers_out + 2048 + 24(%rip)
  kmovw %k4, registers_out + 2048 + 32(%rip)
  kmovw %k5, registers_out + 2048 + 40(%rip)
  kmovw %k6, registers_out + 2048 + 48(%rip)
  kmovw %k7, registers_out + 2048 + 56(%rip)
8:
  stmxcsr registers_out + 2240(%rip)
  fnstcw registers_out + 2244(%rip)
  fstpl registers_out + 2272(%rip)
  fstpl registers_out + 2264(%rip)
  fstpl registers_out + 2256(%rip)
  fstpl registers_out + 2248(%rip)
  fninit
  movl $0x1f80, registers_in + 2232(%rip)
  ldmxcsr registers_in + 2232(%rip)
  cmpl $0, registers_level(%rip)
  je 9f
  vzeroupper
9:
  mov registers_rsp(%rip), %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size registers_spin, . - registers_spin
)");

namespace {

std::atomic<bool> g_spinning{false};
uint64_t g_gs_word = 0x1122334455667788ULL;
std::atomic<bool> g_gs_ok{true};

void prepare_values() {
  fill_pattern(registers_in.zmm, sizeof registers_in.zmm, 3);
  for (int i = 1; i < 8; ++i) registers_in.k[i] = 0x1111ULL * static_cast<uint64_t>(i);
  for (size_t i = 0; i < 15; ++i) registers_in.gp[i] = 0xA5A5000000000000ULL + i * 0x0101010101ULL;
  registers_in.mxcsr = 0x1f80 | 0x6000 | 0x8000;  // round to zero, flush to zero, all exceptions masked
  registers_in.fcw = 0x0c7f;                      // round to zero, double precision
  const double values[4] = {1.5, -2.25, 3.125e100, 4.0625};
  std::memcpy(registers_in.st, values, sizeof values);
}

void spin_forever() {
  syscall(SYS_arch_prctl, ARCH_SET_GS, &g_gs_word);
  for (;;) {
    g_spinning = true;
    registers_spin();
    uint64_t word = 0;
    asm volatile("mov %%gs:0, %0" : "=r"(word));
    g_gs_ok = word == g_gs_word;
    g_spinning = false;
    while (registers_stop) sleep_ms(1);
  }
}

void compare() {
  const size_t vectors = registers_level == 2 ? 32 : 16;
  const size_t width = registers_level == 2 ? 64 : registers_level == 1 ? 32 : 16;
  for (size_t i = 0; i < 15; ++i)
    expect(registers_in.gp[i] == registers_out.gp[i], "general register number " + std::to_string(i) + " changed");
  for (size_t i = 0; i < vectors; ++i)
    expect(std::memcmp(registers_in.zmm[i], registers_out.zmm[i], width) == 0,
           "vector register " + std::to_string(i) + " changed");
  for (size_t i = 1; registers_level == 2 && i < 8; ++i)
    expect((registers_in.k[i] & 0xffff) == (registers_out.k[i] & 0xffff), "mask register k" + std::to_string(i));
  expect_equal(registers_out.mxcsr & ~0x3fU, registers_in.mxcsr & ~0x3fU, "MXCSR");
  expect_equal(registers_out.fcw, registers_in.fcw, "x87 control word");
  for (int i = 0; i < 4; ++i) expect(registers_in.st[i] == registers_out.st[i], "x87 stack changed");
  expect(g_gs_ok, "GS base changed");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        registers_level = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx") ? 1 : 0;
        prepare_values();
        std::thread(spin_forever).detach();
        await([] { return registers_turns > 0; }, "the spinner to start");
        w.serve([] {
          const uint64_t turns = registers_turns;
          await([&] { return registers_turns > turns; }, "the spinner to spin");
          registers_stop = 1;
          await([] { return !g_spinning; }, "the spinner to store its registers");
          const auto resume = [&] {
            registers_stop = 0;
            await([] { return g_spinning.load(); }, "the spinner to go on");
          };
          try {
            compare();
          } catch (...) {
            resume();
            throw;
          }
          resume();
        });
      },
      argv[0]);
}
