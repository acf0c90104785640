// What is read of a stopped task's memory: the same with mappings foreseen as without, and changed flags are noticed.
#include "core/dump/task_memory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "core/base/error.h"
#include "core/dump/memory_scan.h"

namespace migrate {
namespace {

constexpr size_t kBytes = 32 << 20;

/// A child that sleeps with `kBytes` of memory, every second page of which it has written.
class Sleeper {
 public:
  Sleeper() {
    area_ = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(static_cast<void*>(area_), MAP_FAILED);
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (size_t at = 0; at < kBytes; at += 2 * kPageSize) area_[at] = 1;
      ::madvise(area_, kBytes / 2, MADV_DONTFORK);
      if (::write(ready[1], "x", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~Sleeper() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(area_, kBytes);
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  ProcDir proc() const { return ProcDir(pid_); }
  uint64_t address() const { return reinterpret_cast<uint64_t>(area_); }

 private:
  char* area_ = nullptr;
  pid_t pid_ = 0;
};

auto parts(const std::vector<PageRun>& runs) {
  std::vector<std::tuple<uint64_t, uint64_t, bool>> all;
  all.reserve(runs.size());
  for (const PageRun& run : runs) all.emplace_back(run.address, run.pages, run.zero_ok);
  return all;
}

auto parts(const std::vector<Vma>& vmas) {
  std::vector<std::tuple<uint64_t, uint64_t, int, uint32_t, std::string>> all;
  all.reserve(vmas.size());
  for (const Vma& v : vmas) all.emplace_back(v.range.start.get(), v.range.end.get(), v.prot, v.flags, v.name);
  return all;
}

TEST(TaskMemory, IsTheSameWhetherForeseenOrNot) {
  const Sleeper child;
  const ProcDir proc = child.proc();
  const std::vector<Vma> foreseen = foresee_mappings(proc, MappingReader());
  ASSERT_FALSE(foreseen.empty());
  const TaskMemory quick = read_task_memory(proc, MappingReader(), foreseen);
  const TaskMemory full = read_task_memory(proc, MappingReader());
  EXPECT_TRUE(quick.foreseen);
  EXPECT_FALSE(full.foreseen);
  EXPECT_EQ(parts(quick.vmas), parts(full.vmas));
  EXPECT_EQ(parts(quick.pages), parts(full.pages));
  EXPECT_EQ(changed_flags(quick.vmas, full.vmas, 0), nullptr);
  const auto inside = [&](const PageRun& run) {
    return run.address >= child.address() && run.address < child.address() + kBytes;
  };
  EXPECT_EQ(std::count_if(full.pages.begin(), full.pages.end(), inside), kBytes / kPageSize / 2);
  EXPECT_TRUE(std::is_sorted(full.pages.begin(), full.pages.end(),
                             [](const PageRun& a, const PageRun& b) { return a.address < b.address; }));
}

TEST(TaskMemory, IsTheSameWhateverTellsTheFlags) {
  const Sleeper child;
  const TaskMemory walked = read_task_memory(child.proc(), MappingReader::best());
  const TaskMemory read = read_task_memory(child.proc(), MappingReader());
  EXPECT_EQ(parts(walked.vmas), parts(read.vmas));
  EXPECT_EQ(parts(walked.pages), parts(read.pages));
}

TEST(TaskMemory, ReadsAgainWhatWasForeseenWrongly) {
  const Sleeper child;
  std::vector<Vma> foreseen = foresee_mappings(child.proc(), MappingReader());
  ASSERT_FALSE(foreseen.empty());
  foreseen.back().prot ^= PROT_WRITE;
  EXPECT_FALSE(read_task_memory(child.proc(), MappingReader(), foreseen).foreseen);
  foreseen.pop_back();
  EXPECT_FALSE(read_task_memory(child.proc(), MappingReader(), foreseen).foreseen);
}

TEST(TaskMemory, ChangedFlagsAreNoticed) {
  const Sleeper child;
  const std::vector<Vma> now = foresee_mappings(child.proc(), MappingReader());
  std::vector<Vma> then = now;
  const auto ours =
      std::find_if(then.begin(), then.end(), [&](const Vma& v) { return v.range.start.get() == child.address(); });
  ASSERT_NE(ours, then.end());
  EXPECT_TRUE(ours->has(VmFlag::dont_fork));
  const auto bit = static_cast<uint32_t>(VmFlag::dont_fork);
  ours->flags &= ~bit;
  EXPECT_EQ(changed_flags(then, now, 0), &*ours);
  EXPECT_EQ(changed_flags(then, now, bit), nullptr);
  // One of two neighbours that were merged since.
  ours->flags |= bit;
  ours->range.end = RemoteAddr(ours->range.end.get() - kPageSize);
  EXPECT_EQ(changed_flags(then, now, 0), nullptr);
  ours->range.end = RemoteAddr(ours->range.end.get() + 2 * kPageSize);
  EXPECT_EQ(changed_flags(then, now, 0), &*ours);
}

TEST(MemoryScan, TellsOfEachTaskWhatIsReadOrWhatFailed) {
  const Sleeper one, other;
  pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  const ProcDir first = one.proc(), third = other.proc(), second(gone);
  ::waitpid(gone, nullptr, 0);
  const std::vector<Vma> none;
  const MappingReader reader = MappingReader::best();
  MemoryScan scan;
  scan.begin({{&first, &none}, {&second, &none}, {&third, &none}}, reader);
  EXPECT_EQ(parts(scan.take(third.pid()).pages), parts(read_task_memory(third, reader).pages));
  EXPECT_EQ(scan.take(first.pid()).vmas.size(), read_task_memory(first, reader).vmas.size());
  EXPECT_THROW(scan.take(gone), Error);
}

TEST(MemoryScan, MayBeGivenUp) {
  const Sleeper one;
  const ProcDir proc = one.proc();
  const std::vector<Vma> none;
  const MappingReader reader;
  MemoryScan scan;
  scan.begin({{&proc, &none}}, reader);
}

}  // namespace
}  // namespace migrate
