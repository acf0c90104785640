// What prctl(2), personality(2), setrlimit(2) and /proc set of a process.
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <fstream>

#include "small.h"

namespace {

Verify prctl_stays(const char* what, int set, unsigned long value, int get) {
  return in_child([=] {
    allowed(prctl(set, value, 0, 0, 0), what);
    return stays(what, [=] { return prctl(get, 0, 0, 0, 0); });
  });
}

Verify limit_stays(__rlimit_resource resource, rlim_t soft, rlim_t hard) {
  return in_child([=]() -> Verify {
    const rlimit limit{soft, hard};
    allowed(setrlimit(resource, &limit), "raise limits");
    return [=] {
      rlimit now{};
      must(getrlimit(resource, &now), "getrlimit");
      expect_equal(now.rlim_cur, soft, "the soft limit");
      expect_equal(now.rlim_max, hard, "the hard limit");
    };
  });
}

Verify proc_stays(const std::string& file, const std::string& value) {
  return in_child([=] {
    std::ofstream(file) << value << std::flush;
    return stays(file, [=] { return text_of(file); });
  });
}

}  // namespace

WORKLOAD(processes, timer_slack) {
  return prctl_stays("PR_SET_TIMERSLACK", PR_SET_TIMERSLACK, 123456, PR_GET_TIMERSLACK);
}
WORKLOAD(processes, keep_capabilities) { return prctl_stays("PR_SET_KEEPCAPS", PR_SET_KEEPCAPS, 1, PR_GET_KEEPCAPS); }
WORKLOAD(processes, not_dumpable) { return prctl_stays("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 0, PR_GET_DUMPABLE); }
WORKLOAD(processes, no_new_privileges) {
  return prctl_stays("PR_SET_NO_NEW_PRIVS", PR_SET_NO_NEW_PRIVS, 1, PR_GET_NO_NEW_PRIVS);
}
WORKLOAD(processes, io_flusher) { return prctl_stays("PR_SET_IO_FLUSHER", 57, 1, 58); }

WORKLOAD(processes, timestamps_forbidden) {
  return in_child([] {
    must(prctl(PR_SET_TSC, PR_TSC_SIGSEGV), "prctl");
    return stays("PR_GET_TSC", [] {
      int value = 0;
      must(prctl(PR_GET_TSC, &value), "prctl");
      return value;
    });
  });
}

WORKLOAD(processes, death_signal_told) {
  return in_child([] {
    must(prctl(PR_SET_PDEATHSIG, 12), "prctl");
    return stays("PR_GET_PDEATHSIG", [] {
      int value = 0;
      must(prctl(PR_GET_PDEATHSIG, &value), "prctl");
      return value;
    });
  });
}

WORKLOAD(processes, tid_address) {
  return in_thread([]() -> Verify {
    const auto look = [] {
      uintptr_t address = 0;
      return prctl(PR_GET_TID_ADDRESS, &address) == -1 ? 0 : address;
    };
    if (look() == 0) throw NotHere("the kernel has no PR_GET_TID_ADDRESS");
    return stays("PR_GET_TID_ADDRESS", look);
  });
}

WORKLOAD(processes, machine_check_policy) {
  return in_child([] {
    must(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0), "prctl");
    return stays("PR_MCE_KILL_GET", [] { return prctl(PR_MCE_KILL_GET, 0, 0, 0, 0); });
  });
}

WORKLOAD(processes, personality) {
  return in_child([] {
    must(personality(0x7040000 /* ADDR_NO_RANDOMIZE, SHORT_INODE, WHOLE_SECONDS, STICKY_TIMEOUTS */), "personality");
    return stays("the personality", [] { return personality(0xffffffff); });
  });
}

WORKLOAD(processes, umask) {
  return in_child([]() -> Verify {
    umask(0137);
    return [] {
      const mode_t now = umask(0137);
      expect_equal(now, mode_t{0137}, "the umask");
    };
  });
}

WORKLOAD(processes, working_directory) {
  must(mkdir(place.path("here").c_str(), 0755), "mkdir");
  const std::string path = place.path("here");
  return in_child([=] {
    must(chdir(path.c_str()), "chdir");
    return stays("the working directory", [] {
      char buffer[500];
      return std::string(getcwd(buffer, sizeof buffer));
    });
  });
}

WORKLOAD(processes, root_directory) {
  must(mkdir(place.path("root").c_str(), 0755), "mkdir");
  must(mkdir(place.path("root/inner").c_str(), 0755), "mkdir");
  const std::string path = place.path("root");
  return in_child([=]() -> Verify {
    must(chroot(path.c_str()), "chroot");
    must(chdir("/inner"), "chdir");
    return [] {
      char buffer[500];
      expect(getcwd(buffer, sizeof buffer) == std::string("/inner"), "the working directory is another");
      expect(access("/inner", F_OK) == 0 && access("/etc", F_OK) == -1, "the root is another");
    };
  });
}

WORKLOAD(processes, out_of_memory_score) { return proc_stays("/proc/self/oom_score_adj", "345"); }
WORKLOAD(processes, core_dump_filter) { return proc_stays("/proc/self/coredump_filter", "0x1f"); }

WORKLOAD(processes, limit_files) { return limit_stays(RLIMIT_NOFILE, 321, 654); }
WORKLOAD(processes, limit_core) { return limit_stays(RLIMIT_CORE, 4096, RLIM_INFINITY); }
WORKLOAD(processes, limit_stack) { return limit_stays(RLIMIT_STACK, 3 << 20, 5 << 20); }
WORKLOAD(processes, limit_data) { return limit_stays(RLIMIT_DATA, size_t{1} << 33, size_t{1} << 34); }
WORKLOAD(processes, limit_processes) { return limit_stays(RLIMIT_NPROC, 1234, 5678); }
WORKLOAD(processes, limit_nice) { return limit_stays(RLIMIT_NICE, 12, 34); }
WORKLOAD(processes, limit_realtime) { return limit_stays(RLIMIT_RTPRIO, 12, 34); }
WORKLOAD(processes, limit_queues) { return limit_stays(RLIMIT_MSGQUEUE, 4096, 81920); }
WORKLOAD(processes, limit_file_size) { return limit_stays(RLIMIT_FSIZE, 1 << 20, RLIM_INFINITY); }
WORKLOAD(processes, limit_cpu) { return limit_stays(RLIMIT_CPU, 1000, 2000); }
