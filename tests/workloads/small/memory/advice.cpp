// What madvise(2) sets on a mapping, by what it does.
#include <sys/wait.h>

#include "small.h"

namespace {

/// What a child forked now sees there: its byte, or -1 if there is nothing.
int seen_by_child(const char* at) {
  const pid_t pid = must(fork(), "fork");
  if (pid == 0) std::_Exit(readable(at) ? static_cast<unsigned char>(*at) : 255);
  int status = 0;
  must(waitpid(pid, &status, 0), "waitpid");
  expect(WIFEXITED(status), "the child was killed");
  return WEXITSTATUS(status) == 255 ? -1 : WEXITSTATUS(status);
}

/// A mapping with one kind of advice, whose flag smaps shows.
Verify advised(int advice, const char* flag) {
  char* at = area(8);
  fill(at, 8, 3);
  must(madvise(at + kPage, 4 * kPage, advice), "madvise");
  return [=] {
    expect(!has_vm_flag(at, flag), std::string(flag) + " is set before the advised part");
    expect(has_vm_flag(at + kPage, flag), std::string(flag) + " is gone");
    expect(has_vm_flag(at + 4 * kPage, flag), std::string(flag) + " is gone at the end");
    expect(!has_vm_flag(at + 5 * kPage, flag), std::string(flag) + " is set after the advised part");
    expect_filled(at, 8, 3, "the mapping");
  };
}

}  // namespace

WORKLOAD(memory, dontfork) {
  char* at = area(4);
  std::memset(at, 7, 4 * kPage);
  must(madvise(at + kPage, kPage, MADV_DONTFORK), "madvise");
  return [=] {
    expect_equal(seen_by_child(at), 7, "the byte before the page not forked");
    expect_equal(seen_by_child(at + kPage), -1, "the page not forked");
    expect_equal(seen_by_child(at + 2 * kPage), 7, "the byte after the page not forked");
  };
}

WORKLOAD(memory, wipeonfork) {
  char* at = area(4);
  std::memset(at, 7, 4 * kPage);
  must(madvise(at + kPage, kPage, MADV_WIPEONFORK), "madvise");
  return [=] {
    expect_equal(seen_by_child(at), 7, "the byte before the page wiped on fork");
    expect_equal(seen_by_child(at + kPage), 0, "the page wiped on fork");
    expect_equal(at[kPage], 7, "the byte in the parent");
  };
}

WORKLOAD(memory, dontdump) { return advised(MADV_DONTDUMP, "dd"); }
WORKLOAD(memory, sequential) { return advised(MADV_SEQUENTIAL, "sr"); }
WORKLOAD(memory, random) { return advised(MADV_RANDOM, "rr"); }
WORKLOAD(memory, hugepage) { return advised(MADV_HUGEPAGE, "hg"); }
WORKLOAD(memory, nohugepage) { return advised(MADV_NOHUGEPAGE, "nh"); }
WORKLOAD(memory, mergeable) { return advised(MADV_MERGEABLE, "mg"); }

// Advice taken back leaves nothing.
WORKLOAD(memory, advice_taken_back) {
  char* at = area(2);
  fill(at, 2, 5);
  for (const int advice : {MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK,
                           MADV_RANDOM, MADV_NORMAL, MADV_MERGEABLE, MADV_UNMERGEABLE})
    must(madvise(at, 2 * kPage, advice), "madvise");
  return [=] {
    for (const char* flag : {"dc", "dd", "wf", "rr", "mg"})
      expect(!has_vm_flag(at, flag), std::string(flag) + " is set");
    expect_filled(at, 2, 5, "the mapping");
  };
}

// What was given back reads as zero, in the middle of what was not.
WORKLOAD(memory, dontneed) {
  char* at = area(6);
  fill(at, 6, 9);
  must(madvise(at + 2 * kPage, 2 * kPage, MADV_DONTNEED), "madvise");
  return [=] {
    expect_filled(at, 2, 9, "what comes before");
    for (size_t i = 2 * kPage; i < 4 * kPage; ++i) expect(at[i] == 0, "what was given back is not zero");
    expect_pattern(at + 0, 2 * kPage, 9, "what comes before");
  };
}

// Pages that were read only.
WORKLOAD(memory, zero_pages) {
  volatile char* at = area(64);
  for (size_t i = 0; i < 64; ++i) expect(at[i * kPage] == 0, "new memory is not zero");
  const auto* p = const_cast<const char*>(at);
  return [=] {
    for (size_t i = 0; i < 64 * kPage; i += 512) expect(p[i] == 0, "a page of zeros is not zero");
  };
}

// Guard pages are no mappings of their own, so only touching them tells.
WORKLOAD(memory, guard_pages) {
  constexpr int kGuardInstall = 102;  // of newer kernels' headers
  char* at = area(6);
  fill(at, 6, 4);
  if (madvise(at + 2 * kPage, kPage, kGuardInstall) == -1) throw NotHere("the kernel has no MADV_GUARD_INSTALL");
  return [=] {
    expect(readable(at) && readable(at + 2 * kPage - 1) && readable(at + 3 * kPage),
           "a neighbour of the guard is gone");
    expect(!readable(at + 2 * kPage), "the guard page can be read");
    expect_filled(at, 2, 4, "the pages before");
  };
}
