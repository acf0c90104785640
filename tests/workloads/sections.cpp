// Code that the kernel watches while it runs: a thread inside a restartable sequence is aborted or still protected, and
// a thread with the trap flag set traps behind each of its instructions, wherever it was stopped.
#include <signal.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <ucontext.h>

#include <thread>

#include "workload.h"

using namespace workload;

namespace {

std::atomic<uint64_t> g_in_section, g_unprotected, g_steps, g_lost_steps;
uint64_t g_last_step = 0;

/// Both spin for ever: others first. (Not SCHED_IDLE: on a busy machine a visit would wait too long for them.)
void step_back() { setpriority(PRIO_PROCESS, 0, 10); }

[[noreturn]] void stay_in_section() {
  step_back();
  char* const area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  asm volatile(
      ".pushsection .data\n .balign 32\n 9: .long 0, 0\n .quad 2f, 3f - 2f, 4f\n .popsection\n"
      "1: leaq 9b(%%rip), %%rax\n movq %%rax, 8(%[area])\n"
      "2: pause\n lock incq (%[count])\n cmpq $0, 8(%[area])\n je 5f\n jmp 2b\n"
      "3: nop\n jmp 1b\n"
      ".long 0x53053053\n"
      "4: jmp 1b\n"
      "5: lock incq (%[damage])\n jmp 1b\n" ::[area] "r"(area),
      [count] "r"(&g_in_section), [damage] "r"(&g_unprotected)
      : "rax", "memory", "cc");
  __builtin_unreachable();
}

extern "C" const char sections_a[], sections_b[];

void on_step(int, siginfo_t*, void* context) {
  const auto rip = static_cast<uint64_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
  const uint64_t a = reinterpret_cast<uint64_t>(sections_a), b = reinterpret_cast<uint64_t>(sections_b);
  if (g_last_step != 0 && rip != (g_last_step == a ? b : a)) ++g_lost_steps;
  g_last_step = rip == a || rip == b ? rip : 0;
}

[[noreturn]] void step_for_ever() {
  step_back();
  asm volatile(
      "pushfq\n orq $0x100, (%%rsp)\n popfq\n"
      ".globl sections_a, sections_b\n"
      "sections_a: lock incq (%0)\n"
      "sections_b: jmp sections_a\n" ::"r"(&g_steps)
      : "memory", "cc");
  __builtin_unreachable();
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        struct sigaction action {};
        action.sa_sigaction = on_step;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGTRAP, &action, nullptr);
        if (__rseq_size != 0) std::thread(stay_in_section).detach();
        std::thread(step_for_ever).detach();
        uint64_t sections = 0, steps = 0;
        const auto verify = [&] {
          if (__rseq_size != 0) await([&] { return g_in_section > sections; }, "the restartable sequence goes on");
          await([&] { return g_steps > steps; }, "the stepping thread goes on");
          expect(g_unprotected == 0, "a thread ran on inside a restartable sequence without protection");
          expect(g_lost_steps == 0, "steps were lost or told twice");
          sections = g_in_section;
          steps = g_steps;
        };
        verify();
        w.serve(verify);
      },
      argv[0]);
}
