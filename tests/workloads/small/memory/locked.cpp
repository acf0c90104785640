// mlock(2) and its relations.
#include <sys/resource.h>

#include "small.h"

namespace {

bool present(const char* at) {
  unsigned char in = 0;
  must(mincore(const_cast<char*>(at), kPage, &in), "mincore");
  return (in & 1) != 0;
}

}  // namespace

WORKLOAD(memory, mlock) {
  char* at = area(6);
  fill(at, 6, 2);
  must(mlock(at + kPage, 2 * kPage), "mlock");
  return [=] {
    expect(!has_vm_flag(at, "lo"), "the page before is locked");
    expect(has_vm_flag(at + kPage, "lo") && has_vm_flag(at + 2 * kPage, "lo"), "a locked page is not locked");
    expect(!has_vm_flag(at + 3 * kPage, "lo"), "the page after is locked");
    expect_filled(at, 6, 2, "the mapping");
  };
}

WORKLOAD(memory, mlock_on_fault) {
  char* at = area(6);
  must(mlock2(at, 6 * kPage, MLOCK_ONFAULT), "mlock2");
  at[kPage] = 5;
  return [=] {
    expect(has_vm_flag(at, "lo") && has_vm_flag(at, "lf"), "it is not locked on fault");
    expect_equal(at[kPage], 5, "the page that was touched");
    expect(!present(at + 3 * kPage), "a page that nobody touched is there");
  };
}

WORKLOAD(memory, munlock) {
  char* at = area(2);
  must(mlock(at, 2 * kPage), "mlock");
  must(munlock(at, 2 * kPage), "munlock");
  return [=] { expect(!has_vm_flag(at, "lo"), "it is locked"); };
}

WORKLOAD(memory, mlockall_current) {
  return in_child([] {
    char* early = area(3);
    fill(early, 3, 1);
    must(mlockall(MCL_CURRENT), "mlockall");
    char* late = area(3);
    return [=] {
      expect(has_vm_flag(early, "lo"), "what was there at mlockall is not locked");
      expect(!has_vm_flag(late, "lo"), "what came after mlockall is locked");
      expect_filled(early, 3, 1, "the locked memory");
    };
  });
}

WORKLOAD(memory, mlockall_future) {
  return in_child([] {
    must(mlockall(MCL_FUTURE), "mlockall");
    return [] {
      char* at = area(1);
      const bool locked = has_vm_flag(at, "lo");
      munmap(at, kPage);
      expect(locked, "new mappings are not locked any more");
    };
  });
}

WORKLOAD(memory, mlockall_future_on_fault) {
  return in_child([] {
    must(mlockall(MCL_FUTURE | MCL_ONFAULT), "mlockall");
    return [] {
      char* at = area(1);
      const bool locked = has_vm_flag(at, "lo"), there = present(at);
      munmap(at, kPage);
      expect(locked && !there, "new mappings are not locked on fault any more");
    };
  });
}

// Without privilege the limit counts what is locked.
WORKLOAD(memory, locked_within_limit) {
  return in_child([] {
    rlimit limit{16 * kPage, 16 * kPage};
    must(setrlimit(RLIMIT_MEMLOCK, &limit), "setrlimit");
    must(setresuid(12345, 12345, 12345), "setresuid");
    char* at = area(32);
    must(mlock(at, 16 * kPage), "mlock");
    return [=] {
      expect(mlock(at + 16 * kPage, kPage) == -1 && errno == ENOMEM, "more can be locked than the limit says");
      must(munlock(at, kPage), "munlock");
      must(mlock(at, kPage), "mlock of what the limit has room for");
    };
  });
}

WORKLOAD(memory, populated) {
  char* at = area(16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE);
  at[15 * kPage] = 1;
  return [=] {
    expect_equal(at[15 * kPage], 1, "what was written");
    for (size_t i = 0; i < 15 * kPage; ++i) expect(at[i] == 0, "what was not written is not zero");
  };
}
