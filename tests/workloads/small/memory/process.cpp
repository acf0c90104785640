// What belongs to an address space as a whole.
#include <sys/prctl.h>
#include <sys/resource.h>

#include "small.h"

WORKLOAD(memory, thp_disabled) {
  return in_child([] {
    must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl");
    return stays("PR_GET_THP_DISABLE", [] { return prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0); });
  });
}

WORKLOAD(memory, merge_any) {
  return in_child([]() -> Verify {
    if (prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0) == -1) throw std::runtime_error("prctl failed");
    return stays("PR_GET_MEMORY_MERGE", [] { return prctl(68, 0, 0, 0, 0); });
  });
}

WORKLOAD(memory, deny_write_execute) {
  return in_child([]() -> Verify {
    must(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0), "prctl");
    char* at = area(1);
    return
        [=] { expect(mprotect(at, kPage, PROT_READ | PROT_EXEC) == -1, "what was writable can be made executable"); };
  });
}

WORKLOAD(memory, address_space_limit) {
  return in_child([]() -> Verify {
    rlimit limit{size_t{1} << 30, size_t{2} << 30};
    must(setrlimit(RLIMIT_AS, &limit), "setrlimit");
    return [] {
      void* at = mmap(nullptr, size_t{1} << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      expect(at == MAP_FAILED, "more can be mapped than RLIMIT_AS allows");
    };
  });
}

WORKLOAD(memory, command_line) {
  return in_child([] {
    must(prctl(PR_SET_NAME, "renamed \n )", 0, 0, 0), "prctl");
    return stays("/proc/self/comm", [] { return text_of("/proc/self/comm"); });
  });
}

WORKLOAD(memory, auxiliary_vector) {
  return stays("/proc/self/auxv", [] { return text_of("/proc/self/auxv"); });
}

WORKLOAD(memory, stack_deep) {
  return in_thread([]() -> Verify {
    return [] {
      // Each check goes further down than what was there when it was moved.
      char room[40000];
      fill_pattern(room, sizeof room, 3);
      expect_pattern(room, sizeof room, 3, "the stack");
    };
  });
}
