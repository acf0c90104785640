// Pages that come from elsewhere, by several threads, into the shells of a restore that is being prepared: what a live
// migration does.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cstring>
#include <thread>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/restore/restore.h"
#include "tests/core/places.h"

namespace migrate {
namespace {

constexpr size_t kAnonymous = 24 << 20, kShared = 3 << 20, kHidden = 1 << 20;

/// Fixed places, so that the tests know where to look.
constexpr uint64_t kAnonymousAt = 0x10000000000, kSharedAt = 0x10010000000, kHiddenAt = 0x10020000000,
                   kFileAt = 0x10030000000;

void scatter(uint64_t start, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes; i += kPageSize * (1 + i / kPageSize % 3)) {
    const uint64_t word = seed + i * 2654435761u;
    std::memcpy(at(start + i + 8 * (i / kPageSize % 500)), &word, sizeof word);
  }
}

/// Memory of all kinds with contents, then sleep for ever.
[[noreturn]] void be_program(int file) {
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
  const int kept = ::dup2(file, 3);
  ::close_range(4, ~0u, 0);
  const int rw = PROT_READ | PROT_WRITE;
  const int fixed = MAP_FIXED_NOREPLACE;
  ::mmap(at(kAnonymousAt), kAnonymous, rw, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
  ::mmap(at(kSharedAt), kShared, rw, MAP_SHARED | MAP_ANONYMOUS | fixed, -1, 0);
  ::mmap(at(kHiddenAt), kHidden, rw, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
  ::mmap(at(kFileAt), 16 * kPageSize, rw, MAP_PRIVATE | fixed, kept, 0);
  ::close(kept);
  scatter(kAnonymousAt, kAnonymous, 11);
  scatter(kSharedAt, kShared, 22);
  scatter(kHiddenAt, kHidden, 33);
  scatter(kFileAt, 8 * kPageSize, 44);
  ::mprotect(at(kHiddenAt), kHidden, PROT_NONE);
  ::prctl(PR_SET_NAME, "staged");
  for (;;) ::pause();
}

bool has_name(pid_t pid, const std::string& name) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(10));
  while (!deadline.passed()) {
    if (read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid) + "/comm") == name + "\n") return true;
    ::usleep(1000);
  }
  return false;
}

std::vector<std::byte> memory_of(pid_t pid) {
  const Fd mem = open_path("/proc/" + std::to_string(pid) + "/mem", O_RDONLY);
  std::vector<std::byte> all(kAnonymous + kShared + kHidden + 16 * kPageSize);
  std::span<std::byte> rest(all);
  for (const auto& [start, bytes] : {std::pair(kAnonymousAt, kAnonymous), std::pair(kSharedAt, kShared),
                                     std::pair(kHiddenAt, kHidden), std::pair(kFileAt, 16 * kPageSize)}) {
    EXPECT_EQ(pread_full(mem.get(), rest.first(bytes), start, "memory"), bytes) << std::hex << start;
    rest = rest.subspan(bytes);
  }
  return all;
}

struct Page {
  MemoryId memory;
  uint64_t address;
  std::array<std::byte, kPageSize> data;
};

std::vector<Page> pages_of(Dump& dump) {
  std::vector<Page> pages;
  for (const PageSource& source : dump.memories()) {
    for (const PageRun& run : source.runs) {
      for (uint64_t i = 0; i < run.pages; ++i) {
        Page page{source.memory, run.address + i * kPageSize, {}};
        pread_full(source.fd.get(), page.data, page.address, "page");
        pages.push_back(page);
      }
    }
  }
  return pages;
}

class StagingSinkFills : public testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Namespaces, StagingSinkFills, testing::Values(true, false),
                         [](const auto& p) { return p.param ? std::string("Own") : std::string("InPlace"); });

TEST_P(StagingSinkFills, EveryKindOfMemoryByManyThreads) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  char path[] = "/tmp/migrate-staging-XXXXXX";
  const Fd file(::mkstemp(path));
  const std::vector<std::byte> content(16 * kPageSize, std::byte{7});
  write_full(file.get(), content, path);
  const pid_t child = ::fork();
  if (child == 0) be_program(file.get());
  const auto log = null_logger();
  std::vector<std::byte> before, after;
  pid_t alive = child;
  try {
    ASSERT_TRUE(has_name(child, "staged"));
    std::vector<Page> pages;
    ImageSet images;
    {
      Dump dump({.root = Pid(child)}, *log);
      before = memory_of(child);
      pages = pages_of(dump);
      images = std::move(dump.images());
      dump.tree().kill();
    }
    ::waitpid(child, nullptr, 0);
    alive = 0;
    Restore restore({.own_namespaces = GetParam()}, *log);
    restore.prepare(images, nullptr);
    StagingSink sink(restore.take_fill_targets());
    EXPECT_THROW(sink.write({MemoryId::Kind::task, 1}, 0, pages[0].data), Corrupt);
    EXPECT_THROW(sink.write({MemoryId::Kind::task, static_cast<uint64_t>(child)}, 0x7000, pages[0].data), Corrupt);
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        // First stale contents for some, as in an early round, then what counts.
        const std::vector<std::byte> stale(kPageSize, std::byte{0xee});
        for (size_t i = t; i < pages.size(); i += 4) {
          try {
            if (i % 3 == 0) sink.write(pages[i].memory, pages[i].address, stale);
            sink.write(pages[i].memory, pages[i].address, pages[i].data);
          } catch (const Corrupt& e) {
            ADD_FAILURE() << e.what() << std::hex << " " << pages[i].address;
          }
        }
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_GT(sink.pages_written(), pages.size() / 2);
    restore.finish(images);
    restore.open_gate();
    alive = restore.root().get();
    after = memory_of(alive);
    if (GetParam()) {
      // A tree in namespaces that a restore made can be dumped again.
      Dump::preflight({.root = Pid(alive)}, *log);
      Dump again({.root = Pid(alive)}, *log);
      EXPECT_TRUE(again.images().has(image_name("core", static_cast<uint64_t>(child))));
      EXPECT_EQ(again.images().images().contains("pstree.img"), true);
      EXPECT_EQ(again.images().images().at("pstree.img"), images.images().at("pstree.img"));
    }
  } catch (const std::exception& e) {
    ADD_FAILURE() << e.what();
  }
  if (alive > 0) {
    ::kill(alive, SIGKILL);
    ::waitpid(alive, nullptr, 0);
  }
  ::unlink(path);
  EXPECT_TRUE(before == after);
}

}  // namespace
}  // namespace migrate
