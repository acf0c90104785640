// Where memory is, whose it is, and by which policy.
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

WORKLOAD(memory, at_low_address) {
  auto* at = static_cast<char*>(mmap(reinterpret_cast<void*>(0x20000), 2 * kPage, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  if (at == MAP_FAILED) throw NotHere("nothing can be mapped at 0x20000");
  fill(at, 2, 3);
  return [=] { expect_filled(at, 2, 3, "memory at a low address"); };
}

WORKLOAD(memory, below_2_gib) {
  char* at = area(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT);
  fill(at, 4, 3);
  return [=] { expect_filled(at, 4, 3, "memory below 2 GiB"); };
}

WORKLOAD(memory, execute_only) {
  char* at = area(1);
  at[0] = static_cast<char>(0xc3);  // ret
  must(mprotect(at, kPage, PROT_EXEC), "mprotect");
  void (*function)() = nullptr;
  std::memcpy(&function, &at, sizeof function);
  return [=] { function(); };
}

WORKLOAD(memory, memory_file_private) {
  const int fd = must(memfd_create("private", MFD_CLOEXEC), "memfd_create");
  put(fd, std::string(3 * kPage, 'm'));
  char* at = area(3, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  at[kPage] = 'w';
  return [=] {
    expect(at[0] == 'm' && at[kPage] == 'w' && at[2 * kPage] == 'm', "a private mapping of a memory file differs");
    char c = 0;
    must(pread(fd, &c, 1, kPage), "pread");
    expect_equal(c, 'm', "the byte in the file");
  };
}

WORKLOAD(memory, memory_file_read_only) {
  const int fd = must(memfd_create("read-only", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
  put(fd, std::string(2 * kPage, 'r'));
  must(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), "F_ADD_SEALS");
  char* at = area(2, PROT_READ, MAP_PRIVATE, fd);
  return [=] { expect(at[kPage] == 'r' && !writable(at), "a mapping of sealed memory differs"); };
}

WORKLOAD(memory, memory_file_beyond_end) {
  const int fd = must(memfd_create("short", MFD_CLOEXEC), "memfd_create");
  put(fd, std::string(kPage, 's'));
  char* at = area(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  return [=] {
    expect(readable(at) && !readable(at + kPage) && !readable(at + 3 * kPage), "what lies beyond its end can be read");
  };
}

WORKLOAD(memory, freed) {
  char* at = area(16);
  fill(at, 16, 4);
  must(madvise(at + 4 * kPage, 4 * kPage, MADV_FREE), "madvise");
  return [=] {
    expect_filled(at, 4, 4, "what was not freed");
    for (size_t i = 4 * kPage; i < 8 * kPage; ++i)
      expect(at[i] == 0 || at[i] == static_cast<char>(pattern(i, 4)), "what was freed is neither zero nor what it was");
  };
}

WORKLOAD(memory, paged_out) {
  char* at = area(16);
  fill(at, 16, 4);
  must(madvise(at, 16 * kPage, MADV_PAGEOUT), "madvise");
  return [=] { expect_filled(at, 16, 4, "what was paged out"); };
}

namespace {

Verify policy_stays(int mode, unsigned long nodes) {
  must(syscall(SYS_set_mempolicy, mode, &nodes, 64), "set_mempolicy");
  return stays("the memory policy", [] {
    int now = 0;
    unsigned long set[16] = {};
    must(syscall(SYS_get_mempolicy, &now, set, 1024, nullptr, 0), "get_mempolicy");
    return static_cast<unsigned long>(now) << 32 | set[0];
  });
}

}  // namespace

WORKLOAD(memory, policy_of_task) {
  return in_child([] { return policy_stays(2 /* MPOL_BIND */, 1); });
}
WORKLOAD(memory, policy_of_thread) {
  return in_thread([] { return policy_stays(3 /* MPOL_INTERLEAVE */, 1); });
}

WORKLOAD(memory, policy_of_shared_mapping) {
  const int fd = must(memfd_create("policy", MFD_CLOEXEC), "memfd_create");
  must(ftruncate(fd, 8 * kPage), "ftruncate");
  char* at = area(8, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  const unsigned long nodes = 1;
  must(syscall(SYS_mbind, at + 2 * kPage, 4 * kPage, 3 | 1 << 15 /* MPOL_INTERLEAVE of MPOL_F_STATIC_NODES */, &nodes,
               64, 0),
       "mbind");
  return stays("the memory policies of parts of a shared mapping", [=] {
    std::string all;
    for (int page = 0; page < 8; ++page) {
      int now = 0;
      unsigned long set[16] = {};
      must(syscall(SYS_get_mempolicy, &now, set, 1024, at + page * kPage, 2 /* MPOL_F_ADDR */), "get_mempolicy");
      all += std::to_string(now) + ":" + std::to_string(set[0]) + " ";
    }
    return all;
  });
}

WORKLOAD(memory, policy_of_mapping) {
  char* at = area(4);
  const unsigned long nodes = 1;
  must(syscall(SYS_mbind, at, 4 * kPage, 2, &nodes, 64, 0), "mbind");
  return stays("the memory policy of a mapping", [=] {
    int now = 0;
    unsigned long set[16] = {};
    must(syscall(SYS_get_mempolicy, &now, set, 1024, at, 2 /* MPOL_F_ADDR */), "get_mempolicy");
    return static_cast<unsigned long>(now) << 32 | set[0];
  });
}

WORKLOAD(memory, barrier_registered) {
  must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0), "membarrier");
  return
      [] { must(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), "membarrier, which was registered"); };
}

WORKLOAD(memory, global_barrier_registered) {
  must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0), "membarrier");
  return stays("what is registered for membarrier",
               [] { return syscall(SYS_membarrier, 1 << 9 /* GET_REGISTRATIONS */, 0, 0); });
}

WORKLOAD(memory, arguments_moved) {
  return in_child([]() -> Verify {
    static char title[] = "another\0title";
    if (prctl(PR_SET_MM, PR_SET_MM_ARG_START, title, 0, 0) == -1 ||
        prctl(PR_SET_MM, PR_SET_MM_ARG_END, title + sizeof title, 0, 0) == -1)
      throw NotHere("PR_SET_MM is not allowed");
    return stays("/proc/self/cmdline", [] { return text_of("/proc/self/cmdline"); });
  });
}

// Two tasks with one address space that are no threads.
WORKLOAD(memory, shared_by_processes) {
  struct Shared {
    std::atomic<int> asked{0}, answered{0};
    pid_t parent = getpid();
  };
  auto* shared = new Shared;
  char* stack = area(16);
  const auto body = [](void* p) -> int {
    auto& s = *static_cast<Shared*>(p);
    while (syscall(SYS_getppid) == s.parent) {
      s.answered = s.asked.load();
      timespec nap{0, 10'000'000};
      syscall(SYS_nanosleep, &nap, nullptr);
    }
    syscall(SYS_exit, 0);
    return 0;
  };
  must(clone(body, stack + 16 * kPage, CLONE_VM | SIGCHLD, shared), "clone");
  return [=] {
    const int n = ++shared->asked;
    await([=] { return shared->answered == n; }, "the task with the same memory");
  };
}
