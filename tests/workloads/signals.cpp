// Dispositions, masks, pending signals with their siginfo (of the process and of a thread), and a handler that is on
// its alternative stack.
#include <csignal>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

std::atomic<int> g_handled{0};
std::atomic<int> g_on_altstack{0};
std::atomic<bool> g_leave{false};
alignas(64) char g_altstack[128 * 1024];

void on_usr1(int, siginfo_t*, void*) { ++g_handled; }
void on_winch(int) {}
void on_altstack(int, siginfo_t* info, void*) {
  char here = 0;
  g_on_altstack =
      &here > g_altstack && &here < g_altstack + sizeof g_altstack && info->si_value.sival_int == 77 ? 1 : 2;
  while (!g_leave) sleep_ms(5);
  g_on_altstack = &here > g_altstack && &here < g_altstack + sizeof g_altstack ? 3 : 4;
}

struct sigaction action(void (*simple)(int), void (*full)(int, siginfo_t*, void*), int flags,
                        std::initializer_list<int> masked) {
  struct sigaction a = {};
  if (full)
    a.sa_sigaction = full;
  else
    a.sa_handler = simple;
  a.sa_flags = flags;
  sigemptyset(&a.sa_mask);
  for (int s : masked) sigaddset(&a.sa_mask, s);
  return a;
}

void install() {
  struct sigaction a = action(nullptr, on_usr1, SA_SIGINFO | SA_RESTART, {SIGHUP, SIGRTMIN + 9});
  must(sigaction(SIGUSR1, &a, nullptr), "sigaction");
  a = action(SIG_IGN, nullptr, 0, {});
  must(sigaction(SIGUSR2, &a, nullptr), "sigaction");
  a = action(on_winch, nullptr, SA_NODEFER | SA_RESETHAND, {SIGQUIT});
  must(sigaction(SIGWINCH, &a, nullptr), "sigaction");
  a = action(nullptr, on_altstack, SA_SIGINFO | SA_ONSTACK, {});
  must(sigaction(SIGRTMIN + 3, &a, nullptr), "sigaction");
}

void expect_disposition(int sig, void* handler, int flags, std::initializer_list<int> masked) {
  struct sigaction a = {};
  must(sigaction(sig, nullptr, &a), "sigaction");
  const std::string name = "signal " + std::to_string(sig);
  void* got = nullptr;
  std::memcpy(&got, &a.sa_handler, sizeof got);
  expect(got == handler, name + ": another handler");
  expect_equal(a.sa_flags & ~0x04000000, flags, name + ": sa_flags");
  for (int s = 1; s < 65; ++s) {
    bool want = false;
    for (int m : masked) want = want || m == s;
    expect((sigismember(&a.sa_mask, s) == 1) == want, name + ": sa_mask differs at " + std::to_string(s));
  }
}

void queue_pending() {
  for (int i = 1; i <= 5; ++i) {
    sigval v{};
    v.sival_int = 1000 + i;
    must(sigqueue(getpid(), SIGRTMIN + 1, v), "sigqueue");
  }
  sigval v{};
  v.sival_int = 42;
  if (pthread_sigqueue(pthread_self(), SIGRTMIN + 2, v) != 0) throw std::runtime_error("pthread_sigqueue failed");
  must(kill(getpid(), SIGTERM), "kill");
}

void take(int sig, int value, int code, const std::string& what) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, sig);
  siginfo_t info{};
  const timespec zero{};
  expect(sigtimedwait(&set, &info, &zero) == sig, what + " is not pending any more");
  expect_equal(info.si_code, code, what + ": si_code");
  if (value != 0) expect_equal(info.si_value.sival_int, value, what + ": value");
  expect_equal(info.si_pid, getpid(), what + ": si_pid");
}

void verify_pending() {
  for (int i = 1; i <= 5; ++i) take(SIGRTMIN + 1, 1000 + i, SI_QUEUE, "queued signal " + std::to_string(i));
  take(SIGRTMIN + 2, 42, SI_QUEUE, "thread-directed signal");
  take(SIGTERM, 0, SI_USER, "SIGTERM");
  sigset_t pending;
  must(sigpending(&pending), "sigpending");
  for (int s = 1; s < 65; ++s) expect(sigismember(&pending, s) != 1, "unexpected pending signal " + std::to_string(s));
}

void verify_mask(const sigset_t& want) {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  for (int s = 1; s < 65; ++s)
    expect(sigismember(&mask, s) == sigismember(&want, s), "mask differs at signal " + std::to_string(s));
}

/// A thread that sits in a handler on its alternative stack.
void altstack_thread() {
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, SIGRTMIN + 3);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  stack_t stack{};
  stack.ss_sp = g_altstack;
  stack.ss_size = sizeof g_altstack;
  sigaltstack(&stack, nullptr);
  for (;;) {
    sigval v{};
    v.sival_int = 77;
    pthread_sigqueue(pthread_self(), SIGRTMIN + 3, v);  // the handler runs here
    while (g_leave) sleep_ms(1);
    stack_t now{};
    sigaltstack(nullptr, &now);
    if (now.ss_sp != g_altstack || now.ss_size != sizeof g_altstack || now.ss_flags != 0) g_on_altstack = 5;
  }
}

template <typename F>
void* address(F* f) {
  void* p = nullptr;
  std::memcpy(&p, &f, sizeof p);
  return p;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const struct sigaction untouched {};
        must(sigaction(SIGHUP, &untouched, nullptr), "sigaction");  // nohup(1) has it ignored
        install();
        sigset_t blocked;
        sigemptyset(&blocked);
        for (int s : {SIGTERM, SIGRTMIN + 1, SIGRTMIN + 2, SIGCHLD}) sigaddset(&blocked, s);
        pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
        std::thread(altstack_thread).detach();
        await([] { return g_on_altstack != 0; }, "the handler on its own stack");
        queue_pending();
        w.serve([&] {
          verify_mask(blocked);
          expect_disposition(SIGUSR1, address(on_usr1), SA_SIGINFO | SA_RESTART, {SIGHUP, SIGRTMIN + 9});
          expect_disposition(SIGUSR2, address(SIG_IGN), 0, {});
          expect_disposition(SIGWINCH, address(on_winch), SA_NODEFER | static_cast<int>(SA_RESETHAND), {SIGQUIT});
          expect_disposition(SIGHUP, nullptr, 0, {});
          verify_pending();
          const int handled = g_handled;
          raise(SIGUSR1);
          expect_equal(g_handled.load(), handled + 1, "SIGUSR1 handler runs");
          expect_equal(g_on_altstack.load(), 1, "handler on the alternative stack");
          g_leave = true;
          await([] { return g_on_altstack != 1; }, "the handler to leave its stack");
          expect_equal(g_on_altstack.load(), 3, "the handler's end");
          g_leave = false;
          await([] { return g_on_altstack != 3; }, "the next handler");
          expect_equal(g_on_altstack.load(), 1, "the next handler on the alternative stack");
          queue_pending();
        });
      },
      argv[0]);
}
