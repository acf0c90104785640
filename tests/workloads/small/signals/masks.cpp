// Masks and stacks of threads.
#include <ucontext.h>

#include <csignal>

#include "small.h"

namespace {

std::string blocked_now() {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  std::string set;
  for (int s = 1; s < 65; ++s) set += sigismember(&mask, s) == 1 ? '1' : '0';
  return set;
}

void block_only(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : signals) sigaddset(&set, s);
  pthread_sigmask(SIG_SETMASK, &set, nullptr);
}

stack_t stack_now() {
  stack_t now{};
  must(sigaltstack(nullptr, &now), "sigaltstack");
  return now;
}

}  // namespace

WORKLOAD(signals, mask) {
  block_only({SIGUSR1, SIGTERM, SIGRTMIN, SIGRTMAX});
  return stays("the mask", blocked_now);
}

WORKLOAD(signals, mask_of_thread) {
  block_only({SIGHUP});
  const Verify thread = in_thread([] {
    block_only({SIGUSR2, SIGRTMAX - 1});
    return stays("the thread's mask", blocked_now);
  });
  const Verify own = stays("the mask of the main thread", blocked_now);
  return [=] {
    thread();
    own();
  };
}

WORKLOAD(signals, mask_of_everything) {
  return in_child([] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    return stays("the mask", blocked_now);
  });
}

// In sigsuspend, the mask that comes back afterwards is another than the one that is in force.
WORKLOAD(signals, sigsuspend) {
  return in_child([]() -> Verify {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
    static std::atomic<int> rounds{0};
    static std::atomic<bool> right{true};
    static pid_t tid;
    std::atomic<bool>* begun = new std::atomic<bool>(false);
    pthread_t thread{};
    const auto body = [](void* flag) -> void* {
      block_only({SIGUSR1, SIGHUP});
      tid = gettid();
      *static_cast<std::atomic<bool>*>(flag) = true;
      sigset_t none;
      sigfillset(&none);
      sigdelset(&none, SIGUSR1);
      const std::string before = blocked_now();
      for (;;) {
        sigsuspend(&none);
        if (errno != EINTR || blocked_now() != before) right = false;
        ++rounds;
      }
    };
    block_only({SIGUSR1});
    must(pthread_create(&thread, nullptr, body, begun) == 0 ? 0 : -1, "pthread_create");
    await([=] { return begun->load(); }, "the thread");
    return [=] {
      const int before = rounds;
      must(syscall(SYS_tgkill, getpid(), tid, SIGUSR1), "tgkill");
      await([=] { return rounds == before + 1; }, "sigsuspend to end");
      expect(right, "the mask after sigsuspend is another");
    };
  });
}

WORKLOAD(signals, alternative_stack) {
  static char room[65536];
  stack_t stack{};
  stack.ss_sp = room;
  stack.ss_size = sizeof room;
  must(sigaltstack(&stack, nullptr), "sigaltstack");
  static std::atomic<bool> there{false};
  struct sigaction action {};
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = [](int) {
    char here = 0;
    there = &here >= room && &here < room + sizeof room;
  };
  must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
  return [] {
    there = false;
    raise(SIGUSR1);
    expect(there, "the handler does not run on its stack");
    expect(stack_now().ss_size == sizeof room && stack_now().ss_flags == 0, "the stack is another");
  };
}

WORKLOAD(signals, alternative_stack_autodisarm) {
  static char room[65536];
  stack_t stack{};
  stack.ss_sp = room;
  stack.ss_size = sizeof room;
  stack.ss_flags = static_cast<int>(1U << 31);  // SS_AUTODISARM
  must(sigaltstack(&stack, nullptr), "sigaltstack");
  return stays("the flags of the alternative stack", [] { return stack_now().ss_flags; });
}

WORKLOAD(signals, alternative_stack_of_thread) {
  const Verify thread = in_thread([] {
    static char room[65536];
    stack_t stack{};
    stack.ss_sp = room;
    stack.ss_size = sizeof room;
    must(sigaltstack(&stack, nullptr), "sigaltstack");
    return stays("the thread's alternative stack", [] { return reinterpret_cast<uintptr_t>(stack_now().ss_sp); });
  });
  return [=] {
    thread();
    expect_equal(stack_now().ss_flags, SS_DISABLE, "the flags of the main thread's alternative stack");
  };
}

// A handler that is in the middle of its work, with what it will return to.
WORKLOAD(signals, inside_a_handler) {
  return in_child([]() -> Verify {
    static std::atomic<int> state{0};
    static std::atomic<int> ended{0};
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = [](int, siginfo_t*, void* context) {
      auto* c = static_cast<ucontext_t*>(context);
      const auto before = c->uc_mcontext.gregs[REG_RSP];
      state = 1;
      while (state == 1) sleep_ms(2);
      if (c->uc_mcontext.gregs[REG_RSP] == before) ++ended;
    };
    must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
    pthread_t thread{};
    const auto body = [](void*) -> void* {
      for (;;) raise(SIGUSR1);
    };
    must(pthread_create(&thread, nullptr, body, nullptr) == 0 ? 0 : -1, "pthread_create");
    await([] { return state == 1; }, "the handler");
    return [] {
      const int before = ended;
      state = 2;
      await([=] { return ended == before + 1 && state == 1; }, "the handler to return, and to be called again");
    };
  });
}

WORKLOAD(signals, fault_in_a_handler) {
  static std::atomic<int> faults{0};
  static char* page;
  page = area(1, PROT_NONE);
  struct sigaction action {};
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    if (info->si_addr == page + 8 && info->si_code == SEGV_ACCERR) ++faults;
    mprotect(page, kPage, PROT_READ | PROT_WRITE);
  };
  must(sigaction(SIGSEGV, &action, nullptr), "sigaction");
  return [] {
    faults = 0;
    *static_cast<volatile char*>(page + 8) = 1;
    expect_equal(faults.load(), 1, "faults at the protected page");
    must(mprotect(page, kPage, PROT_NONE), "mprotect");
  };
}
