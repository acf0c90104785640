// What sigaction(2) keeps, by what it does.
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

std::atomic<int> g_calls{0};
std::atomic<int> g_blocked{0};  // the signals blocked in the handler, as a set of bits

void count(int) {
  ++g_calls;
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  g_blocked =
      (sigismember(&mask, SIGUSR1) << 0) | (sigismember(&mask, SIGUSR2) << 1) | (sigismember(&mask, SIGHUP) << 2);
}

void handle(int sig, int flags, std::initializer_list<int> masked = {}) {
  struct sigaction action {};
  action.sa_handler = count;
  action.sa_flags = flags;
  for (const int s : masked) sigaddset(&action.sa_mask, s);
  must(sigaction(sig, &action, nullptr), "sigaction");
}

int calls_of(int sig) {
  const int before = g_calls;
  raise(sig);
  return g_calls - before;
}

/// The status with which a child ends that gets the signal.
int death_by(int sig) {
  const pid_t pid = must(fork(), "fork");
  if (pid == 0) {
    raise(sig);
    std::_Exit(9);
  }
  int status = 0;
  must(waitpid(pid, &status, 0), "waitpid");
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

}  // namespace

WORKLOAD(signals, handler) {
  handle(SIGUSR1, 0);
  return [] { expect_equal(calls_of(SIGUSR1), 1, "calls of the handler"); };
}

WORKLOAD(signals, ignored) {
  must(signal(SIGTERM, SIG_IGN) != SIG_ERR ? 0 : -1, "signal");
  return [] { expect_equal(death_by(SIGTERM), -9, "how a child ends that ignores the signal"); };
}

WORKLOAD(signals, by_default) {
  must(signal(SIGTERM, SIG_DFL) != SIG_ERR ? 0 : -1, "signal");
  return [] { expect_equal(death_by(SIGTERM), SIGTERM, "the signal that ends a child"); };
}

WORKLOAD(signals, handler_mask) {
  handle(SIGUSR1, 0, {SIGUSR2});
  return [] {
    raise(SIGUSR1);
    expect_equal(g_blocked.load(), 3, "what is blocked in the handler");
  };
}

WORKLOAD(signals, nodefer) {
  handle(SIGUSR1, SA_NODEFER);
  return [] {
    raise(SIGUSR1);
    expect_equal(g_blocked.load(), 0, "what is blocked in the handler");
  };
}

WORKLOAD(signals, resethand) {
  return in_child([]() -> Verify {
    handle(SIGUSR1, SA_RESETHAND);
    return [] {
      expect_equal(calls_of(SIGUSR1), 1, "calls of the handler");
      struct sigaction now {};
      must(sigaction(SIGUSR1, nullptr, &now), "sigaction");
      expect(now.sa_handler == SIG_DFL, "the handler is still there after its call");
      handle(SIGUSR1, SA_RESETHAND);
    };
  });
}

namespace {

/// Sent to the process, and not taken yet.
bool is_pending(pid_t pid, int sig) {
  const std::string shared = field(text_of("/proc/" + std::to_string(pid) + "/status"), "ShdPnd");
  return !shared.empty() && (std::stoull(shared, nullptr, 16) >> (sig - 1) & 1) != 0;
}

/// For two seconds at most: who is asked finds out what did not happen.
void wait_in_child(const std::function<bool()>& happened) {
  for (int i = 0; i < 2000 && !happened(); ++i) sleep_ms(1);
}

}  // namespace

// Calls that were interrupted go on, or end, as the handler's flag says.
WORKLOAD(signals, restart_flag) {
  handle(SIGUSR1, SA_RESTART);
  handle(SIGUSR2, 0);
  return [] {
    for (const int sig : {SIGUSR1, SIGUSR2}) {
      const Pipe p = make_pipe();
      const pid_t pid = getpid();
      const pid_t tid = gettid();
      const pid_t child = must(fork(), "fork");
      if (child == 0) {
        // The call has begun when the task sleeps.
        const std::string stat = "/proc/" + std::to_string(tid) + "/syscall";
        wait_in_child([&] { return text_of(stat).rfind("0 ", 0) == 0; });
        kill(pid, sig);
        // Whoever takes it was interrupted by it.
        wait_in_child([&] { return !is_pending(pid, sig); });
        put(p.out, "x");
        std::_Exit(0);
      }
      char c = 0;
      const ssize_t got = read(p.in, &c, 1);
      const int error = errno;
      waitpid(child, nullptr, 0);
      close(p.in);
      close(p.out);
      if (sig == SIGUSR1)
        expect(got == 1, "a read was not restarted");
      else
        expect(got == -1 && error == EINTR, "a read was restarted");
    }
  };
}

WORKLOAD(signals, siginfo_flag) {
  static std::atomic<int> sender{0};
  struct sigaction action {};
  action.sa_sigaction = [](int, siginfo_t* info, void*) { sender = info->si_pid; };
  action.sa_flags = SA_SIGINFO;
  must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
  return [] {
    sender = 0;
    must(kill(getpid(), SIGUSR1), "kill");
    expect_equal(sender.load(), getpid(), "the sender");
  };
}

WORKLOAD(signals, children_ignored) {
  must(signal(SIGCHLD, SIG_IGN) != SIG_ERR ? 0 : -1, "signal");
  return [] {
    const pid_t pid = must(fork(), "fork");
    if (pid == 0) std::_Exit(3);
    int status = 0;
    expect(waitpid(pid, &status, 0) == -1 && errno == ECHILD, "a child whose end is ignored can be waited for");
  };
}

WORKLOAD(signals, children_without_zombies) {
  handle(SIGCHLD, SA_NOCLDWAIT | SA_RESTART);
  return [] {
    const int before = g_calls;
    const pid_t pid = must(fork(), "fork");
    if (pid == 0) std::_Exit(3);
    int status = 0;
    expect(waitpid(pid, &status, 0) == -1 && errno == ECHILD, "a child became a zombie");
    await([=] { return g_calls == before + 1; }, "SIGCHLD");
  };
}

WORKLOAD(signals, children_stop_silently) {
  handle(SIGCHLD, SA_NOCLDSTOP | SA_RESTART);
  const pid_t child = idle_child();
  return [=] {
    const int before = g_calls;
    must(kill(child, SIGSTOP), "kill");
    int status = 0;
    must(waitpid(child, &status, WUNTRACED), "waitpid");
    must(kill(child, SIGCONT), "kill");
    must(waitpid(child, &status, WCONTINUED), "waitpid");
    expect_equal(g_calls - before, 0, "signals for a child that was stopped");
  };
}

WORKLOAD(signals, all_handled) {
  for (int s = SIGRTMIN; s <= SIGRTMAX; ++s) handle(s, SA_RESTART);
  return [] {
    for (int s = SIGRTMIN; s <= SIGRTMAX; ++s) expect_equal(calls_of(s), 1, "calls by signal " + std::to_string(s));
  };
}
