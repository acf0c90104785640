// What a thread has in registers, and what the kernel knows of it.
#include <asm/prctl.h>
#include <pthread.h>
#include <sched.h>

#include <cfenv>

#include "small.h"

WORKLOAD(threads, local_storage) {
  return in_thread([]() -> Verify {
    static thread_local int mine = 0;
    mine = 7;
    return [] { expect_equal(mine++ >= 7, true, "the thread's own variable"); };
  });
}

WORKLOAD(threads, fs_base) {
  return in_thread([] {
    return stays("the FS base", [] {
      unsigned long base = 0;
      must(syscall(SYS_arch_prctl, ARCH_GET_FS, &base), "arch_prctl");
      return base;
    });
  });
}

WORKLOAD(threads, gs_base) {
  return in_thread([]() -> Verify {
    static uint64_t mine = 0x1122334455667788;
    must(syscall(SYS_arch_prctl, ARCH_SET_GS, &mine), "arch_prctl");
    return [] {
      uint64_t value = 0;
      asm volatile("movq %%gs:0, %0" : "=r"(value));
      expect_equal(value, mine, "what GS leads to");
    };
  });
}

WORKLOAD(threads, rounding) {
  return in_thread([]() -> Verify {
    std::fesetround(FE_UPWARD);
    return [] { expect_equal(std::fegetround(), FE_UPWARD, "the rounding of floating point"); };
  });
}

WORKLOAD(threads, mxcsr) {
  return in_thread([] {
    const uint32_t value = 0xffc0;  // flush to zero, denormals are zeros, towards zero
    asm volatile("ldmxcsr %0" ::"m"(value));
    return stays("MXCSR", [] {
      uint32_t now = 0;
      asm volatile("stmxcsr %0" : "=m"(now));
      return now & 0xffc0;
    });
  });
}

WORKLOAD(threads, x87_control) {
  return in_thread([] {
    const uint16_t value = 0x0c7f;
    asm volatile("fldcw %0" ::"m"(value));
    return stays("the control word of the x87", [] {
      uint16_t now = 0;
      asm volatile("fnstcw %0" : "=m"(now));
      return now;
    });
  });
}

namespace {

/// A thread fills registers from `in`, waits until `go` is not 0, and stores them to `out`.
struct Loop {
  std::atomic<uint32_t> go{0}, round{0};
  alignas(64) uint8_t in[64], out[64];
};

Verify vectors_stay(void (*turn)(Loop&), size_t size) {
  auto* loop = new Loop;
  fill_pattern(loop->in, sizeof loop->in, 5);
  pthread_t thread{};
  struct Start {
    Loop* loop;
    void (*turn)(Loop&);
  };
  const auto body = [](void* p) -> void* {
    const Start start = *static_cast<Start*>(p);
    for (;;) {
      start.turn(*start.loop);
      start.loop->go = 0;
      ++start.loop->round;
    }
  };
  must(pthread_create(&thread, nullptr, body, new Start{loop, turn}) == 0 ? 0 : -1, "pthread_create");
  return [=] {
    const uint32_t before = loop->round;
    std::memset(loop->out, 0, sizeof loop->out);
    loop->go = 1;
    await([=] { return loop->round == before + 1; }, "the thread to store its registers");
    expect_pattern(loop->out, size, 5, "the register");
    sleep_ms(5);  // it loads them again
  };
}

// Until l.go is not 0; sleeping keeps all registers but three.
#define WAIT "\n1: movl $35, %%eax\n syscall\n cmpl $0, (%2)\n je 1b\n"
#define OPERANDS(l) "r"((l).in), "r"((l).out), "r"(&(l).go), "D"(&kNap), "S"(nullptr)
#define CLOBBERS "rax", "rcx", "r11", "memory", "cc"
const timespec kNap{0, 5'000'000};

}  // namespace

WORKLOAD(threads, xmm_register) {
  return vectors_stay(
      [](Loop& l) { asm volatile("movdqu (%0), %%xmm7" WAIT "movdqu %%xmm7, (%1)" ::OPERANDS(l)
                                 : "xmm7", CLOBBERS); },
      16);
}

WORKLOAD(threads, ymm_register) {
  if (!__builtin_cpu_supports("avx")) throw NotHere("the processor has no AVX");
  return vectors_stay(
      [](Loop& l) {
        asm volatile("vmovdqu (%0), %%ymm7" WAIT "vmovdqu %%ymm7, (%1)\n vzeroupper" ::OPERANDS(l) : "xmm7", CLOBBERS);
      },
      32);
}

WORKLOAD(threads, zmm_register) {
  if (!__builtin_cpu_supports("avx512f")) throw NotHere("the processor has no AVX-512");
  return vectors_stay(
      [](Loop& l) {
        asm volatile("vmovdqu64 (%0), %%zmm7" WAIT "vmovdqu64 %%zmm7, (%1)\n vzeroupper" ::OPERANDS(l)
                     : "xmm7", CLOBBERS);
      },
      64);
}

WORKLOAD(threads, high_zmm_register) {
  if (!__builtin_cpu_supports("avx512f")) throw NotHere("the processor has no AVX-512");
  return vectors_stay(
      [](Loop& l) {
        asm volatile("vmovdqu64 (%0), %%zmm29" WAIT "vmovdqu64 %%zmm29, (%1)\n vzeroupper" ::OPERANDS(l)
                     : "xmm7", CLOBBERS);
      },
      64);
}

WORKLOAD(threads, mask_register) {
  if (!__builtin_cpu_supports("avx512bw")) throw NotHere("the processor has no AVX-512 BW");
  return vectors_stay(
      [](Loop& l) { asm volatile("kmovq (%0), %%k5" WAIT "kmovq %%k5, (%1)" ::OPERANDS(l)
                                 : CLOBBERS); }, 8);
}

WORKLOAD(threads, x87_stack) {
  return vectors_stay([](Loop& l) { asm volatile("fildll (%0)" WAIT "fistpll (%1)" ::OPERANDS(l)
                                                 : "st", CLOBBERS); },
                      8);
}

WORKLOAD(threads, registers) {
  return vectors_stay(
      [](Loop& l) {
        asm volatile("movq (%0), %%r12\n movq 8(%0), %%r13\n movq 16(%0), %%rdx\n movq 24(%0), %%r14" WAIT
                     "movq %%r12, (%1)\n movq %%r13, 8(%1)\n movq %%rdx, 16(%1)\n movq %%r14, 24(%1)" ::OPERANDS(l)
                     : "r12", "r13", "rdx", "r14", CLOBBERS);
      },
      32);
}

WORKLOAD(threads, many) {
  std::vector<Verify> all;
  all.reserve(40);
  for (int i = 0; i < 40; ++i) all.push_back(in_thread([] { return stays("a thread's id", [] { return gettid(); }); }));
  return [=] {
    for (const Verify& one : all) one();
  };
}

// The kernel writes the processor's number there.
WORKLOAD(threads, restartable_sequence) {
  return in_thread([]() -> Verify {
    return [] {
      await([] { return sched_getcpu() >= 0; }, "a processor");
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(1, &set);
      if (sched_setaffinity(0, sizeof set, &set) == -1) return;
      const int there = sched_getcpu();
      CPU_ZERO(&set);
      CPU_SET(0, &set);
      must(sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
      const int here = sched_getcpu();
      CPU_SET(1, &set);
      must(sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
      expect(there == 1 && here == 0, "what the kernel writes of the processor is old");
    };
  });
}

// The owner ends with it, and the next one is told.
WORKLOAD(threads, robust_mutex) {
  auto* mutex = shared_memory<pthread_mutex_t>();
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(mutex, &attributes);
  static std::atomic<int> told{0};
  const auto start_owner = [=] {
    told = 0;
    const auto body = [](void* m) -> void* {
      pthread_mutex_lock(static_cast<pthread_mutex_t*>(m));
      told = 1;
      while (told != 2) sleep_ms(2);
      return nullptr;  // without unlocking
    };
    pthread_t thread{};
    must(pthread_create(&thread, nullptr, body, mutex) == 0 ? 0 : -1, "pthread_create");
    await([] { return told == 1; }, "the owner");
    return thread;
  };
  const auto owner = std::make_shared<pthread_t>(start_owner());
  return [=] {
    expect_equal(pthread_mutex_trylock(mutex), EBUSY, "what trylock says");
    told = 2;
    pthread_join(*owner, nullptr);
    expect_equal(pthread_mutex_lock(mutex), EOWNERDEAD, "what lock says after the owner's end");
    pthread_mutex_consistent(mutex);
    pthread_mutex_unlock(mutex);
    *owner = start_owner();
  };
}
