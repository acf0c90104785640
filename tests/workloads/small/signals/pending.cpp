// Signals that wait.
#include <sys/signalfd.h>

#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

sigset_t set_of(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : signals) sigaddset(&set, s);
  return set;
}

void block(std::initializer_list<int> signals) {
  const sigset_t set = set_of(signals);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

/// Takes one that waits.
siginfo_t take(int sig) {
  const sigset_t set = set_of({sig});
  siginfo_t info{};
  const timespec now{};
  if (sigtimedwait(&set, &info, &now) != sig)
    throw std::runtime_error("signal " + std::to_string(sig) + " does not wait");
  return info;
}

void expect_none(int sig) {
  const sigset_t set = set_of({sig});
  const timespec now{};
  expect(sigtimedwait(&set, nullptr, &now) == -1 && errno == EAGAIN, "signal " + std::to_string(sig) + " waits");
}

void queue(int sig, int value) {
  sigval v{};
  v.sival_int = value;
  must(sigqueue(getpid(), sig, v), "sigqueue");
}

}  // namespace

WORKLOAD(signals, pending) {
  block({SIGUSR1, SIGUSR2});
  must(kill(getpid(), SIGUSR1), "kill");
  return [] {
    const siginfo_t info = take(SIGUSR1);
    expect_equal(info.si_code, SI_USER, "si_code");
    expect_equal(info.si_pid, getpid(), "si_pid");
    expect_none(SIGUSR1);
    expect_none(SIGUSR2);
    must(kill(getpid(), SIGUSR1), "kill");
  };
}

WORKLOAD(signals, pending_of_thread) {
  block({SIGUSR1});
  return in_thread([]() -> Verify {
    raise(SIGUSR1);
    return [] {
      take(SIGUSR1);
      expect_none(SIGUSR1);
      raise(SIGUSR1);
    };
  });
}

WORKLOAD(signals, queue_in_order) {
  block({SIGRTMIN + 1});
  const auto fill_queue = [] {
    for (int i = 0; i < 50; ++i) queue(SIGRTMIN + 1, i * i);
  };
  fill_queue();
  return [=] {
    for (int i = 0; i < 50; ++i)
      expect_equal(take(SIGRTMIN + 1).si_value.sival_int, i * i, "value " + std::to_string(i));
    expect_none(SIGRTMIN + 1);
    fill_queue();
  };
}

// The lowest comes first, whatever order they came in.
WORKLOAD(signals, queue_by_number) {
  block({SIGRTMIN + 1, SIGRTMIN + 2, SIGRTMIN + 3});
  const auto fill_queue = [] {
    for (const int k : {3, 1, 2, 1}) queue(SIGRTMIN + k, k);
  };
  fill_queue();
  return [=] {
    const sigset_t set = set_of({SIGRTMIN + 1, SIGRTMIN + 2, SIGRTMIN + 3});
    for (const int k : {1, 1, 2, 3}) {
      siginfo_t info{};
      const timespec now{};
      expect_equal(sigtimedwait(&set, &info, &now), SIGRTMIN + k, "the signal that comes next");
      expect_equal(info.si_value.sival_int, k, "its value");
    }
    fill_queue();
  };
}

// A standard signal waits once only.
WORKLOAD(signals, pending_once) {
  block({SIGUSR2});
  for (int i = 0; i < 3; ++i) must(kill(getpid(), SIGUSR2), "kill");
  return [] {
    take(SIGUSR2);
    expect_none(SIGUSR2);
    for (int i = 0; i < 3; ++i) must(kill(getpid(), SIGUSR2), "kill");
  };
}

WORKLOAD(signals, pending_pointer_value) {
  block({SIGRTMIN + 4});
  const auto send = [] {
    sigval v{};
    v.sival_ptr = reinterpret_cast<void*>(0x123456789abcdef0);
    must(sigqueue(getpid(), SIGRTMIN + 4, v), "sigqueue");
  };
  send();
  return [=] {
    expect(take(SIGRTMIN + 4).si_value.sival_ptr == reinterpret_cast<void*>(0x123456789abcdef0),
           "the value of 64 bits differs");
    send();
  };
}

WORKLOAD(signals, pending_own_code) {
  block({SIGRTMIN + 5});
  const auto send = [] {
    siginfo_t info{};
    info.si_signo = SIGRTMIN + 5;
    info.si_code = -77;
    info.si_errno = 5;
    must(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGRTMIN + 5, &info), "rt_tgsigqueueinfo");
  };
  send();
  return [=] {
    const siginfo_t info = take(SIGRTMIN + 5);
    expect_equal(info.si_code, -77, "si_code");
    expect_equal(info.si_errno, 5, "si_errno");
    send();
  };
}

WORKLOAD(signals, pending_child_ended) {
  return in_child([]() -> Verify {
    block({SIGCHLD});
    const auto end_one = [] {
      const pid_t pid = must(fork(), "fork");
      if (pid == 0) std::_Exit(7);
      siginfo_t info{};
      must(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
      return pid;
    };
    const auto pid = std::make_shared<pid_t>(end_one());
    return [=] {
      const siginfo_t info = take(SIGCHLD);
      expect_equal(info.si_pid, *pid, "si_pid");
      expect_equal(info.si_status, 7, "si_status");
      expect_equal(info.si_code, CLD_EXITED, "si_code");
      siginfo_t end{};
      must(waitid(P_PID, static_cast<id_t>(*pid), &end, WEXITED), "waitid");
      *pid = end_one();
    };
  });
}

WORKLOAD(signals, pending_stop) {
  return in_child([]() -> Verify {
    block({SIGTSTP, SIGCONT});
    raise(SIGTSTP);
    return [] {
      take(SIGTSTP);
      raise(SIGTSTP);
    };
  });
}

WORKLOAD(signals, signalfd) {
  block({SIGUSR1, SIGRTMIN + 2});
  const sigset_t set = set_of({SIGUSR1, SIGRTMIN + 2});
  const int fd = must(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
  queue(SIGRTMIN + 2, 55);
  return [=] {
    signalfd_siginfo info{};
    expect(read(fd, &info, sizeof info) == sizeof info, "nothing comes from the signalfd");
    expect_equal(info.ssi_signo, static_cast<uint32_t>(SIGRTMIN + 2), "its signal");
    expect_equal(info.ssi_int, 55, "its value");
    expect(read(fd, &info, sizeof info) == -1 && errno == EAGAIN, "the signalfd gives more than was sent");
    queue(SIGRTMIN + 2, 55);
  };
}

WORKLOAD(signals, signalfd_mask) {
  block({SIGUSR1, SIGUSR2});
  const sigset_t first = set_of({SIGUSR1}), then = set_of({SIGUSR2});
  const int fd = must(signalfd(-1, &first, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
  must(signalfd(fd, &then, 0), "signalfd");
  return [=] {
    raise(SIGUSR1);
    signalfd_siginfo info{};
    expect(read(fd, &info, sizeof info) == -1, "the signalfd gives what is not in its set any more");
    take(SIGUSR1);
    raise(SIGUSR2);
    expect(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR2,
           "the signalfd does not give what is in its set");
  };
}

// As many as RLIMIT_SIGPENDING allows; one more is refused.
WORKLOAD(signals, queue_limit) {
  return in_child([]() -> Verify {
    rlimit limit{20, 20};
    must(setresuid(23456, 23456, 23456), "setresuid");
    must(setrlimit(RLIMIT_SIGPENDING, &limit), "setrlimit");
    block({SIGRTMIN + 1});
    for (int i = 0; i < 20; ++i) queue(SIGRTMIN + 1, i);
    return [] {
      sigval v{};
      expect(sigqueue(getpid(), SIGRTMIN + 1, v) == -1 && errno == EAGAIN, "more can wait than the limit says");
      for (int i = 0; i < 20; ++i) expect_equal(take(SIGRTMIN + 1).si_value.sival_int, i, "value " + std::to_string(i));
      for (int i = 0; i < 20; ++i) queue(SIGRTMIN + 1, i);
    };
  });
}
