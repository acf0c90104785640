// What tasks share beside memory, and what else the kernel keeps of them.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

/// A task that shares `flags` with us, and does `work` whenever it is asked.
Verify shares(int flags, void (*work)(), const std::function<void()>& look) {
  struct Shared {
    std::atomic<int> asked{0}, answered{0};
    std::atomic<pid_t> parent{0};
    void (*work)() = nullptr;
  };
  auto* shared = new (shared_memory<Shared>()) Shared;
  shared->parent = getpid();
  shared->work = work;
  char* stack = area(64);
  const auto body = [](void* p) -> int {
    auto& s = *static_cast<Shared*>(p);
    while (getppid() == s.parent) {
      if (s.answered != s.asked) {
        s.work();
        s.answered = s.asked.load();
      }
      sleep_ms(10);
    }
    std::_Exit(0);
  };
  must(clone(body, stack + 64 * kPage, flags | SIGCHLD, shared), "clone");
  return [=] {
    for (int turn = 0; turn < 2; ++turn) {  // there and back
      const int n = ++shared->asked;
      await([=] { return shared->answered == n; }, "the task that shares");
      look();
    }
  };
}

}  // namespace

WORKLOAD(processes, shared_place) {
  return in_child([] {
    return shares(
        CLONE_FS, [] { umask(umask(0) ^ 077); },
        [was = std::make_shared<mode_t>(0)] {
          const mode_t now = umask(0);
          umask(now);
          expect(now != *was, "a umask that another task changes is not shared");
          *was = now;
        });
  });
}

WORKLOAD(processes, shared_descriptors) {
  return in_child([] {
    return shares(
        CLONE_FILES,
        [] {
          if (close(701) == -1) must(dup2(0, 701), "dup2");
        },
        [was = std::make_shared<bool>(false)] {
          const bool now = fcntl(701, F_GETFD) != -1;
          expect(now != *was, "a descriptor that another task opens or closes is not shared");
          *was = now;
        });
  });
}

WORKLOAD(processes, own_place_of_thread) {
  const std::string dir = place.dir();
  const Verify thread = in_thread([=] {
    must(unshare(CLONE_FS), "unshare");
    must(chdir(dir.c_str()), "chdir");
    return stays("the thread's working directory", [] {
      char text[500];
      return std::string(getcwd(text, sizeof text));
    });
  });
  must(chdir("/"), "chdir");
  return [=] {
    thread();
    char text[500];
    expect(getcwd(text, sizeof text) == std::string("/"), "the working directory of the main thread is another");
  };
}

WORKLOAD(processes, own_descriptors_of_thread) {
  const Verify thread = in_thread([]() -> Verify {
    must(unshare(CLONE_FILES), "unshare");
    const int fd = must(fcntl(0, F_DUPFD_CLOEXEC, 700), "dup");
    return [=] { expect(fcntl(fd, F_GETFD) != -1, "the thread's descriptor is closed"); };
  });
  return [=] {
    thread();
    expect(fcntl(700, F_GETFD) == -1, "the main thread has the other thread's descriptor");
  };
}

WORKLOAD(processes, exit_signal) {
  static std::atomic<int> told{0};
  struct sigaction action {};
  action.sa_handler = [](int) { ++told; };
  action.sa_flags = SA_RESTART;
  must(sigaction(SIGUSR2, &action, nullptr), "sigaction");
  const auto start_one = [] {
    const long pid = must(syscall(SYS_clone, SIGUSR2, nullptr, nullptr, nullptr, nullptr), "clone");
    if (pid == 0) {
      const pid_t parent = getppid();
      while (getppid() == parent) sleep_ms(20);
      std::_Exit(0);
    }
    return static_cast<pid_t>(pid);
  };
  const auto child = std::make_shared<pid_t>(start_one());
  return [=] {
    const int before = told;
    must(kill(*child, SIGKILL), "kill");
    await([=] { return told == before + 1; }, "the child's own exit signal", 5000);
    must(waitpid(*child, nullptr, __WALL), "waitpid");
    *child = start_one();
  };
}

WORKLOAD(processes, speculation) {
  return in_child([]() -> Verify {
    const int now = prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0);
    if (now == -1 || (now & 1) == 0) throw NotHere("speculation cannot be controlled here");
    must(prctl(PR_SET_SPECULATION_CTRL, 0, 4 /* PR_SPEC_DISABLE */, 0, 0), "prctl");
    return stays("PR_GET_SPECULATION_CTRL", [] { return prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0); });
  });
}

WORKLOAD(processes, readable_means_executable) {
  return in_child([]() -> Verify {
    must(syscall(SYS_personality, 0x0400000 /* READ_IMPLIES_EXEC */), "personality");
    return [] {
      char* at = area(1);
      const bool executable = has_vm_flag(at, "ex");
      munmap(at, kPage);
      expect(executable, "what can be read cannot be executed any more");
    };
  });
}

WORKLOAD(processes, custom_slice) {
  struct Attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t least, most;
  };
  return in_child([]() -> Verify {
    Attributes a{sizeof(Attributes), 0, 0, 0, 0, 3'000'000, 0, 0, 0, 0};
    must(syscall(SYS_sched_setattr, 0, &a, 0), "sched_setattr");
    return stays("the slice", [] {
      Attributes now{};
      must(syscall(SYS_sched_getattr, 0, &now, sizeof now, 0), "sched_getattr");
      return now.runtime;
    });
  });
}

WORKLOAD(processes, deadline_scheduling) {
  struct Attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  };
  return in_child([]() -> Verify {
    Attributes a{sizeof(Attributes), 6, 0, 0, 0, 1'000'000, 50'000'000, 100'000'000};
    allowed(syscall(SYS_sched_setattr, 0, &a, 0), "use SCHED_DEADLINE");
    return stays("the runtime of SCHED_DEADLINE", [] {
      Attributes now{};
      must(syscall(SYS_sched_getattr, 0, &now, sizeof now, 0), "sched_getattr");
      return now.runtime;
    });
  });
}

WORKLOAD(processes, ports_allowed) {
  return in_child([]() -> Verify {
    if (syscall(SYS_ioperm, 0x80, 1, 1) == -1) throw NotHere("ioperm is not allowed");
    return [] { asm volatile("outb %%al, $0x80" ::"a"(0)); };
  });
}

WORKLOAD(processes, traced_by_any) {
  return in_child([]() -> Verify {
    if (prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) == -1) throw NotHere("the kernel has no Yama");
    return [] {};
  });
}

WORKLOAD(processes, login_user) {
  return stays("/proc/self/loginuid", [] { return text_of("/proc/self/loginuid"); });
}
WORKLOAD(processes, forty_children) {
  std::vector<pid_t> all;
  all.reserve(40);
  for (int i = 0; i < 40; ++i) all.push_back(idle_child());
  return [=] {
    for (const pid_t pid : all) expect(kill(pid, 0) == 0 && waitpid(pid, nullptr, WNOHANG) == 0, "a child is gone");
  };
}

WORKLOAD(processes, zombie_of_other_user) {
  return in_child([]() -> Verify {
    const pid_t pid = must(fork(), "fork");
    if (pid == 0) {
      if (setresuid(1234, 1234, 1234) == -1) std::_Exit(9);
      std::_Exit(3);
    }
    siginfo_t info{};
    must(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
    return [=] {
      siginfo_t now{};
      must(waitid(P_PID, static_cast<id_t>(pid), &now, WEXITED | WNOWAIT), "waitid");
      expect_equal(now.si_status, 3, "its code");
      expect_equal(now.si_uid, uid_t{1234}, "its user");
    };
  });
}

WORKLOAD(processes, zombie_with_name) {
  return in_child([]() -> Verify {
    const pid_t pid = must(fork(), "fork");
    if (pid == 0) {
      prctl(PR_SET_NAME, "was called so");
      std::_Exit(0);
    }
    siginfo_t info{};
    must(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
    return stays("the name of a zombie", [=] { return text_of("/proc/" + std::to_string(pid) + "/comm"); });
  });
}
