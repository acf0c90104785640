// Who feeds from a frozen tree that others have left.
#include "migrate/session/handover/source_feed.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

namespace migrate {
namespace {

// Else who waits for a page that is gone by now would wait for ever.
TEST(SourceFeed, HasAllOfSharedMemoryAlsoWhatIsNotThere) {
  constexpr uint64_t kPages = 300;
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto* at = static_cast<char*>(
        ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    at[7 * kPageSize] = 1;
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  ::waitpid(pid, nullptr, WUNTRACED);
  JournalEntry entry;
  entry.tasks.push_back(*TaskId::of(pid));
  const std::vector<PageSource> all = pages_of_held_tree(entry);
  EXPECT_TRUE(std::ranges::any_of(all, [](const PageSource& source) {
    return source.memory.kind == MemoryId::Kind::shmem && source.pages() == kPages && source.runs.size() == 1;
  }));
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

}  // namespace
}  // namespace migrate
