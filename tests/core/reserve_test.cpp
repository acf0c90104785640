// Memory that is made ready at the destination before the tree stops: what is restored equals what was stopped, also if
// the tree has changed meanwhile, and takes no more memory.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cstring>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/memory/tree_survey.h"
#include "core/restore/restore.h"
#include "tests/core/places.h"

namespace migrate {
namespace {

constexpr uint64_t kAt = 0x10000000000, kBytes = 16 << 20, kGrownAt = 0x10100000000, kGrown = 2 << 20;
constexpr uint64_t kHugeAt = 0x10200000000, kHuge = 6 << 20;

void touch(uint64_t start, uint64_t bytes, int seed) {
  for (uint64_t i = 0; i < bytes; i += kPageSize)
    std::memset(at(start + i), static_cast<int>(i >> 12) % 100 + seed, 64);
}

void map(uint64_t start, uint64_t bytes) {
  ::mmap(at(start), bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ::madvise(at(start), bytes, MADV_NOHUGEPAGE);
}

/// Says "1" when it has its memory, changes it at a word, says "2", and sleeps for ever.
[[noreturn]] void be_program(int words, int answers) {
  ::setsid();
  map(kAt, kBytes);
  touch(kAt, kBytes / 2, 1);
  map(kHugeAt, kHuge);
  ::madvise(at(kHugeAt), kHuge, MADV_HUGEPAGE);
  touch(kHugeAt, kHuge, 4);
  (void)!::write(answers, "1", 1);
  char c;
  (void)!::read(words, &c, 1);
  ::madvise(at(kAt + (1 << 20)), 1 << 20, MADV_DONTNEED);
  ::munmap(at(kAt + (4 << 20)), 1 << 20);
  touch(kAt + kBytes / 2, 1 << 20, 2);
  ::madvise(at(kHugeAt + (1 << 20)), 1 << 20, MADV_DONTNEED);
  map(kGrownAt, kGrown);
  touch(kGrownAt, kGrown, 3);
  ::mprotect(at(kAt + (2 << 20)), 1 << 20, PROT_NONE);
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
  (void)!::write(answers, "2", 1);
  ::close_range(3, ~0u, 0);
  for (;;) ::pause();
}

uint64_t resident(pid_t pid) {
  const auto status = ProcDir(pid).status();
  return std::stoull(status.at("RssAnon")) << 10;
}

uint64_t huge(pid_t pid) {
  const std::string text = ProcDir(pid).read("smaps_rollup");
  return std::stoull(text.substr(text.find("AnonHugePages:") + 14)) << 10;
}

std::vector<std::byte> memory_of(pid_t pid) {
  const Fd mem = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDONLY);
  std::vector<std::byte> all;
  for (const auto& [start, bytes] : {std::pair(kAt, uint64_t{4 << 20}), std::pair(kAt + (5 << 20), kBytes - (5 << 20)),
                                     std::pair(kGrownAt, kGrown), std::pair(kHugeAt, kHuge)}) {
    std::vector<std::byte> part(bytes);
    EXPECT_EQ(pread_full(mem.get(), part, start, "memory"), bytes);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

/// Pages that have contents, as a sender would leave zeros out.
void fill(const std::vector<PageSource>& sources, PageSink& sink) {
  for (const PageSource& source : sources) {
    for (const PageRun& run : source.runs) {
      for (uint64_t i = 0; i < run.pages; ++i) {
        std::vector<std::byte> page(kPageSize);
        pread_full(source.fd.get(), page, run.address + i * kPageSize, "page");
        if (run.zero_ok && page == std::vector<std::byte>(kPageSize)) continue;
        sink.write(source.memory, run.address + i * kPageSize, page);
      }
    }
  }
}

TEST(Reserve, AChangedTreeComesOutAsItIs) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  int words[2], answers[2];
  ASSERT_EQ(::pipe2(words, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(answers, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) be_program(words[0], answers[1]);
  char c = 0;
  ASSERT_EQ(::read(answers[0], &c, 1), 1);
  const auto log = null_logger();
  pid_t alive = child;
  try {
    const TreeSurvey survey = survey_tree(Pid(child), MappingReader::best());
    ASSERT_EQ(survey.layout.tasks.size(), 1u);
    RestoreOptions options{.own_namespaces = true};
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    const int64_t ns = now.tv_sec * 1'000'000'000 + now.tv_nsec;
    options.clocks = RestoreOptions::Clocks{ns, ns, ns};
    Restore restore(options, *log);
    restore.warm(survey.layout, nullptr);
    const uint64_t empty = resident(restore.root().get());
    restore.reserve_pages(survey.pages);
    EXPECT_GE(resident(restore.root().get()), empty + kBytes / 2 + kHuge);
    // Whether there are huge pages depends on the machine's memory, and here is what that was.
    RecordProperty("huge_pages_of_source", std::to_string(huge(child)));
    RecordProperty("huge_pages_reserved", std::to_string(huge(restore.root().get())));

    ASSERT_EQ(::write(words[1], "g", 1), 1);
    ASSERT_EQ(::read(answers[0], &c, 1), 1);
    Dump dump({.root = Pid(child)}, *log);
    const std::vector<std::byte> before = memory_of(child);
    const uint64_t had = resident(child);
    const std::vector<PageDiscard> unused = unused_pages(survey.pages, dump.memories());
    EXPECT_FALSE(unused.empty());
    restore.discard_pages(unused);
    restore.prepare(dump.images(), nullptr);
    EXPECT_TRUE(restore.cold().empty());
    StagingSink sink(restore.take_fill_targets());
    fill(dump.memories(), sink);
    dump.tree().kill();
    ::waitpid(child, nullptr, 0);
    alive = 0;
    restore.finish(dump.images());
    restore.open_gate();
    alive = restore.root().get();
    EXPECT_TRUE(before == memory_of(alive));
    EXPECT_LE(resident(alive), had + 16 * kPageSize);
  } catch (const std::exception& e) {
    ADD_FAILURE() << e.what();
  }
  if (alive > 0) {
    ::kill(alive, SIGKILL);
    ::waitpid(alive, nullptr, 0);
  }
  for (const int fd : {words[0], words[1], answers[0], answers[1]}) ::close(fd);
}

TEST(Reserve, HugePagesOnlyInWholeBlocks) {
  constexpr uint64_t kBlock = 2 << 20, kBase = uint64_t{1} << 40;
  const MemoryId memory{MemoryId::Kind::task, 7};
  const auto pages = [](uint64_t bytes) { return bytes / kPageSize; };
  const std::vector<PageRun> all{{kBase, pages(10 * kBlock)}};
  // From the middle of a block to the middle of the fourth after it; then one page.
  const std::vector<PageRun> runs{{kBase + kBlock / 2, pages(4 * kBlock)}, {kBase + 8 * kBlock, 1}};
  const std::vector<PageReserve> cut{{memory, kBase + kBlock / 2, pages(kBlock / 2), false},
                                     {memory, kBase + kBlock, pages(3 * kBlock), true},
                                     {memory, kBase + 4 * kBlock, pages(kBlock / 2), false},
                                     {memory, kBase + 8 * kBlock, 1, false}};
  EXPECT_EQ(split_huge(memory, runs, all), cut);
  EXPECT_EQ(split_huge(memory, runs, {}).size(), 2u);
}

TEST(Reserve, UnusedIsWhatNoSourceHas) {
  const MemoryId a{MemoryId::Kind::task, 1}, b{MemoryId::Kind::task, 2};
  std::vector<PageSource> sources(1);
  sources[0].memory = a;
  sources[0].runs = {{0x2000, 2}, {0x10000, 1}};
  const std::vector<PageDiscard> unused{{a, 0x1000, 1}, {a, 0x4000, 2}, {b, 0x1000, 1}};
  EXPECT_EQ(unused_pages({{a, 0x1000, 5, false}, {b, 0x1000, 1, false}}, sources), unused);
}

}  // namespace
}  // namespace migrate
