// Children, groups, sessions.
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

/// A child that has ended and is not collected.
pid_t zombie(const std::function<void()>& end) {
  const pid_t pid = must(fork(), "fork");
  if (pid == 0) {
    end();
    std::_Exit(250);
  }
  siginfo_t info{};
  must(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
  return pid;
}

/// Collects it, looks at its status, and makes another.
Verify zombie_with(const std::function<void()>& end, int status) {
  const auto pid = std::make_shared<pid_t>(zombie(end));
  return [=] {
    int got = 0;
    expect_equal(waitpid(*pid, &got, WNOHANG), *pid, "what waitpid gives");
    expect_equal(got, status, "the status of a child that ended");
    *pid = zombie(end);
  };
}

}  // namespace

WORKLOAD(processes, zombie_exited) {
  return zombie_with([] { std::_Exit(42); }, 42 << 8);
}
WORKLOAD(processes, zombie_exited_0) {
  return zombie_with([] { std::_Exit(0); }, 0);
}
WORKLOAD(processes, zombie_killed) {
  return zombie_with([] { raise(SIGKILL); }, SIGKILL);
}
WORKLOAD(processes, zombie_terminated) {
  return zombie_with([] { raise(SIGTERM); }, SIGTERM);
}
WORKLOAD(processes, zombie_by_realtime_signal) {
  return zombie_with([] { raise(SIGRTMIN + 3); }, SIGRTMIN + 3);
}

WORKLOAD(processes, many_zombies) {
  return in_child([]() -> Verify {
    for (int i = 0; i < 30; ++i) zombie([i] { std::_Exit(i); });
    return [] {
      int sum = 0, status = 0;
      for (int i = 0; i < 30; ++i) {
        must(waitpid(-1, &status, WNOHANG), "waitpid");
        sum += WEXITSTATUS(status);
      }
      expect_equal(sum, 29 * 30 / 2, "the sum of their codes");
      for (int i = 0; i < 30; ++i) zombie([i] { std::_Exit(i); });
    };
  });
}

WORKLOAD(processes, group_of_zombie_leader) {
  return in_child([]() -> Verify {
    const pid_t leader = zombie([] { setpgid(0, 0); });
    // A member outlives its leader.
    const pid_t first = must(fork(), "fork");
    if (first == 0) {
      for (;;) pause();
    }
    must(setpgid(first, first), "setpgid");
    const pid_t member = idle_child([=] { must(setpgid(0, first), "setpgid"); });
    must(kill(first, SIGKILL), "kill");
    siginfo_t info{};
    must(waitid(P_PID, static_cast<id_t>(first), &info, WEXITED | WNOWAIT), "waitid");
    return [=] {
      expect_equal(getpgid(member), first, "the group whose leader has ended");
      expect(kill(leader, 0) == 0, "the zombie is gone");
    };
  });
}

WORKLOAD(processes, own_group) {
  const pid_t child = idle_child([] { must(setpgid(0, 0), "setpgid"); });
  return [=] { expect_equal(getpgid(child), child, "the child's group"); };
}

WORKLOAD(processes, group_of_two) {
  const pid_t one = idle_child([] { must(setpgid(0, 0), "setpgid"); });
  const pid_t two = idle_child([=] { must(setpgid(0, one), "setpgid"); });
  return [=] {
    expect_equal(getpgid(two), one, "the group of the second");
    expect_equal(getpgid(one), one, "the group of the first");
  };
}

WORKLOAD(processes, own_session) {
  const pid_t child = idle_child([] { must(setsid(), "setsid"); });
  return [=] {
    expect_equal(getsid(child), child, "the child's session");
    expect_equal(getpgid(child), child, "the child's group");
    expect(getsid(0) != child, "the parent is in the child's session");
  };
}

// Of a session whose leader has ended.
WORKLOAD(processes, session_without_leader) {
  return in_child([]() -> Verify {
    must(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
    struct Pids {
      std::atomic<pid_t> session, member;
    };
    auto* pids = shared_memory<Pids>();
    const pid_t top = getpid();
    const pid_t leader = must(fork(), "fork");
    if (leader == 0) {
      pids->session = setsid();
      const pid_t member = fork();
      if (member == 0) {
        pids->member = getpid();
        while (kill(top, 0) == 0) sleep_ms(50);
        std::_Exit(0);
      }
      std::_Exit(0);
    }
    await([=] { return pids->member != 0; }, "the member");
    must(waitpid(leader, nullptr, 0), "waitpid");
    return [=] { expect_equal(getsid(pids->member), pids->session.load(), "the session whose leader has ended"); };
  });
}

WORKLOAD(processes, subreaper) {
  return in_child([]() -> Verify {
    must(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
    return [] {
      const pid_t child = must(fork(), "fork");
      if (child == 0) {
        if (fork() == 0) {
          sleep_ms(20);
          std::_Exit(5);
        }
        std::_Exit(0);
      }
      must(waitpid(child, nullptr, 0), "waitpid");
      int status = 0;
      expect(waitpid(-1, &status, 0) > 0 && WEXITSTATUS(status) == 5, "an orphan does not come to the subreaper");
    };
  });
}

WORKLOAD(processes, orphan_of_subreaper) {
  return in_child([]() -> Verify {
    must(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
    auto* orphan = shared_memory<std::atomic<pid_t>>();
    const pid_t top = getpid();
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      if (fork() == 0) {
        *orphan = getpid();
        while (kill(top, 0) == 0) sleep_ms(50);
        std::_Exit(0);
      }
      std::_Exit(0);
    }
    must(waitpid(child, nullptr, 0), "waitpid");
    await([=] { return *orphan != 0; }, "the orphan");
    return [=] { expect_equal(waitpid(*orphan, nullptr, WNOHANG), 0, "what waitpid says of the orphan"); };
  });
}

WORKLOAD(processes, death_signal) {
  static std::atomic<int>* got;
  got = shared_memory<std::atomic<int>>();
  // The middle one ends at the check, and another takes its place.
  const auto start_family = [] {
    const Pipe ready = make_pipe();
    const pid_t middle = must(fork(), "fork");
    if (middle == 0) {
      if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGUSR1);
        struct sigaction action {};
        action.sa_handler = [](int) {
          ++*got;
          std::_Exit(0);
        };
        sigaction(SIGUSR1, &action, nullptr);
        put(ready.out, "x");
        for (;;) pause();
      }
      const pid_t parent = getppid();
      while (getppid() == parent) sleep_ms(20);
      std::_Exit(0);
    }
    char c = 0;
    expect(read(ready.in, &c, 1) == 1, "the family did not start");
    close(ready.in);
    close(ready.out);
    return middle;
  };
  const auto middle = std::make_shared<pid_t>(start_family());
  return [=] {
    const int before = *got;
    must(kill(*middle, SIGKILL), "kill");
    must(waitpid(*middle, nullptr, 0), "waitpid");
    await([=] { return *got == before + 1; }, "the signal of the parent's death");
    *middle = start_family();
  };
}

WORKLOAD(processes, stopped) {
  const pid_t child = idle_child();
  must(kill(child, SIGSTOP), "kill");
  int status = 0;
  must(waitpid(child, &status, WUNTRACED), "waitpid");
  return [=] {
    expect(text_of("/proc/" + std::to_string(child) + "/stat").find(") T ") != std::string::npos,
           "the child is not stopped");
    must(kill(child, SIGCONT), "kill");
    int now = 0;
    must(waitpid(child, &now, WCONTINUED), "waitpid");
    expect(WIFCONTINUED(now), "the child does not continue");
    must(kill(child, SIGSTOP), "kill");
    must(waitpid(child, &now, WUNTRACED), "waitpid");
  };
}

WORKLOAD(processes, deep_family) {
  auto* deepest = shared_memory<std::atomic<int>>();
  const pid_t top = getpid();
  if (must(fork(), "fork") == 0) {
    for (int depth = 1; depth < 20; ++depth) {
      if (fork() != 0) {
        while (kill(top, 0) == 0) {
          sleep_ms(50);
          waitpid(-1, nullptr, WNOHANG);
        }
        std::_Exit(0);
      }
    }
    while (kill(top, 0) == 0) {
      ++*deepest;
      sleep_ms(20);
    }
    std::_Exit(0);
  }
  await([=] { return *deepest > 0; }, "the last of the family");
  return [=] {
    const int before = *deepest;
    await([=] { return *deepest != before; }, "the last of the family");
  };
}

WORKLOAD(processes, threads_with_names) {
  return in_thread([] {
    must(prctl(PR_SET_NAME, "a thread"), "prctl");
    return stays("the thread's name", [] { return text_of("/proc/thread-self/comm"); });
  });
}

WORKLOAD(processes, same_numbers) {
  const pid_t child = idle_child();
  const pid_t pid = getpid(), tid = gettid(), parent = getppid();
  const Verify thread = in_thread([] { return stays("the thread's id", [] { return gettid(); }); });
  return [=] {
    expect_equal(getpid(), pid, "the pid");
    expect_equal(gettid(), tid, "the thread's id");
    expect_equal(getppid(), parent, "the parent's pid");
    expect(kill(child, 0) == 0, "the child is gone");
    thread();
  };
}

WORKLOAD(processes, robust_list) {
  return in_thread([]() -> Verify {
    return stays("the head of the robust list", [] {
      void* head = nullptr;
      size_t size = 0;
      must(syscall(SYS_get_robust_list, 0, &head, &size), "get_robust_list");
      return reinterpret_cast<uintptr_t>(head) + size;
    });
  });
}

// The kernel clears the word, and wakes who waits for it, when the thread ends.
WORKLOAD(processes, clear_child_tid) {
  return in_child([]() -> Verify {
    static std::atomic<bool> end{false};
    pthread_t thread{};
    const auto body = [](void*) -> void* {
      while (!end) sleep_ms(2);
      return nullptr;
    };
    must(pthread_create(&thread, nullptr, body, nullptr) == 0 ? 0 : -1, "pthread_create");
    const auto current = std::make_shared<pthread_t>(thread);
    return [=] {
      end = true;
      expect(pthread_join(*current, nullptr) == 0, "pthread_join failed");
      end = false;
      must(pthread_create(current.get(), nullptr, body, nullptr) == 0 ? 0 : -1, "pthread_create");
    };
  });
}
