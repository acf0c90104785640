// Mappings with their flags: what the kernel's VMAs tell is what smaps tells, and nothing is guessed about a bit.
#include "core/memory/mapping_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <tuple>

namespace migrate {
namespace {

/// A child that has made mappings and sleeps.
class Mapper {
 public:
  explicit Mapper(const std::function<void()>& make) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      make();
      if (::write(ready[1], "x", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte = 0;
    ::close(ready[1]);
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
  }
  ~Mapper() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Mapper(const Mapper&) = delete;
  Mapper& operator=(const Mapper&) = delete;
  ProcDir proc() const { return ProcDir(pid_); }

 private:
  pid_t pid_ = 0;
};

char* map(size_t pages, int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
  void* at = ::mmap(nullptr, pages * kPageSize, prot, flags, fd, 0);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

auto all_of(const std::vector<Vma>& vmas) {
  std::vector<std::tuple<uint64_t, uint64_t, int, bool, uint64_t, uint32_t, int, std::string>> all;
  for (const Vma& v : vmas)
    all.emplace_back(v.range.start.get(), v.range.end.get(), v.prot, v.shared, v.offset, v.flags, v.protection_key,
                     v.name);
  return all;
}

void make_all_kinds() {
  for (const int advice : {MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP, MADV_HUGEPAGE,
                           MADV_NOHUGEPAGE, MADV_MERGEABLE}) {
    ::madvise(map(2), 2 * kPageSize, advice);
    char* both = map(3);
    ::madvise(both, 2 * kPageSize, advice);
    ::madvise(both, kPageSize, MADV_DONTFORK);
  }
  ::mlock(map(2), kPageSize);
  ::mlock2(map(2), kPageSize, MLOCK_ONFAULT);
  map(5, PROT_NONE);
  map(5, PROT_READ);
  map(2, PROT_READ | PROT_WRITE | PROT_EXEC);
  map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
  map(2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  const int file = ::open("/proc/self/exe", O_RDONLY);
  map(1, PROT_READ, MAP_SHARED, file);
  map(1, PROT_READ | PROT_WRITE, MAP_PRIVATE, file);
}

TEST(MappingReader, TellsWhatSmapsTells) {
  const MappingReader best = MappingReader::best();
  const Mapper child(make_all_kinds);
  const auto quick = best.read_quickly(child.proc());
  if (!quick) GTEST_SKIP() << "this kernel, or our capabilities, do not allow a BPF iterator over VMAs (Linux 6.1)";
  EXPECT_EQ(all_of(*quick), all_of(MappingReader().read(child.proc())));
  EXPECT_EQ(all_of(best.read(child.proc())), all_of(*quick));
}

TEST(MappingReader, ReadsManyMappings) {
  const Mapper child([] {
    char* area = map(8000);
    for (size_t i = 0; i < 8000; i += 2) ::mprotect(area + i * kPageSize, kPageSize, PROT_READ);
  });
  const std::vector<Vma> read = MappingReader().read(child.proc());
  EXPECT_GT(read.size(), 8000U);
  EXPECT_EQ(all_of(MappingReader::best().read(child.proc())), all_of(read));
}

TEST(MappingReader, WithoutTheIteratorNothingIsQuick) {
  const Mapper child([] {});
  EXPECT_FALSE(MappingReader().read_quickly(child.proc()));
  EXPECT_FALSE(MappingReader().read(child.proc()).empty());
}

TEST(MappingReader, ATaskThatIsGoneIsAnError) {
  std::optional<ProcDir> gone;
  {
    const Mapper child([] {});
    gone.emplace(child.proc());
  }
  EXPECT_THROW(MappingReader::best().read(*gone), Error);
}

uint32_t bits(std::initializer_list<VmFlag> flags) {
  uint32_t all = 0;
  for (const VmFlag flag : flags) all |= static_cast<uint32_t>(flag);
  return all;
}

// A kernel of another making: rd = bit 7, wr = 3, dc = 60, pf and io = 1 and 2 always together.
const std::vector<VmFlagBits::Sample> kSamples{
    {1U << 7, {"rd"}},
    {1U << 7 | 1U << 3, {"rd", "wr"}},
    {1U << 7 | uint64_t{1} << 60, {"rd", "dc"}},
    {1U << 7 | 1U << 1 | 1U << 2, {"rd", "pf", "io"}},
};

TEST(VmFlagBits, AreLearnt) {
  const VmFlagBits learnt(kSamples);
  EXPECT_EQ(learnt.flags(0), 0U);
  EXPECT_EQ(learnt.flags(1U << 7 | 1U << 3), 0U);
  EXPECT_EQ(learnt.flags(uint64_t{1} << 60 | 1U << 3), bits({VmFlag::dont_fork}));
  EXPECT_EQ(learnt.flags(1U << 1 | 1U << 2), bits({VmFlag::pfn_map, VmFlag::io}));
}

TEST(VmFlagBits, AreNotGuessed) {
  const VmFlagBits learnt(kSamples);
  EXPECT_FALSE(learnt.flags(1U << 5)) << "a bit never seen";
  EXPECT_FALSE(learnt.flags(1U << 1)) << "one of two that came together always";
  EXPECT_FALSE(VmFlagBits({}).flags(1));
  // A bit without a code that came with the only sample of "dc": which of the two is meant is not known.
  const VmFlagBits unclear({{1, {"rd"}}, {1 | 2 | 4, {"rd", "dc"}}});
  EXPECT_FALSE(unclear.flags(2));
  EXPECT_FALSE(unclear.flags(2 | 4));
  EXPECT_EQ(unclear.flags(1), 0U);
}

}  // namespace
}  // namespace migrate
