// A shared object by itself: what is allocated, held and written of it.
#include "lazypages/lazy_objects.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "core/base/error.h"
#include "core/freeze/memory_room.h"
#include "core/memory/small_pages.h"

namespace migrate {
namespace {

constexpr MemoryId kObject{MemoryId::Kind::shmem, 5};
constexpr uint64_t kHuge = 2 << 20;
constexpr uint64_t kBlocks = kPageSize / 512;  ///< st_blocks of a page

std::unique_ptr<LazyObject> lazy(const Fd& file, uint64_t bytes, std::vector<PageRun> missing) {
  LazyMemory memory{.memory = kObject, .userfaultfd = file.dup()};
  memory.ranges.push_back({RemoteAddr(kHuge), RemoteAddr(kHuge + bytes)});
  memory.missing = std::move(missing);
  return std::make_unique<LazyObject>(std::move(memory), std::make_shared<LazyRecord>());
}

Fd memory_file(uint64_t bytes) {
  Fd file(::memfd_create("lazy-alone", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  return file;
}

std::vector<std::byte> pages_of(char c, uint64_t pages) {
  return std::vector<std::byte>(pages * kPageSize, static_cast<std::byte>(c));
}

char at(const Fd& file, uint64_t page) {
  char c = 0;
  EXPECT_EQ(::pread(file.get(), &c, 1, static_cast<off_t>(page * kPageSize)), 1);
  return c;
}

uint64_t blocks_of(const Fd& file) {
  struct stat status {};
  EXPECT_EQ(::fstat(file.get(), &status), 0);
  return static_cast<uint64_t>(status.st_blocks);
}

void punch(const Fd& file, uint64_t page, uint64_t pages) {
  make_hole(file.get(), page * kPageSize, pages * kPageSize);
}

/// Where the only mapping of the memory is.
void* mapping_of_memory() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.find("memfd:lazy-alone") != std::string::npos)
      return reinterpret_cast<void*>(std::stoul(line.substr(0, line.find('-')), nullptr, 16));  // NOLINT
  return nullptr;
}

TEST(LazyObject, WhatCannotBeWrittenIsNoHole) {
  const Fd file = memory_file(16 * kPageSize);
  const auto object = lazy(file, 16 * kPageSize, {{0, 16}});
  punch(file, 3, 1);
  object->put(2 * kPageSize, pages_of('a', 4));
  EXPECT_EQ(object->missing_pages(), 12u);
  EXPECT_EQ(at(file, 2), 'a');
  EXPECT_EQ(at(file, 5), 'a');
  EXPECT_EQ(blocks_of(file), 15 * kBlocks) << "a hole was filled";
  // It fails like want of memory: EIO, and the pages are there.
  void* mapped = mapping_of_memory();
  ASSERT_NE(mapped, nullptr);
  ASSERT_EQ(::mprotect(mapped, 16 * kPageSize, PROT_READ), 0);
  EXPECT_THROW(object->put(8 * kPageSize, pages_of('b', 2)), Error);
  EXPECT_TRUE(object->awaits(8 * kPageSize));
  EXPECT_EQ(object->missing_pages(), 12u);
  ASSERT_EQ(::mprotect(mapped, 16 * kPageSize, PROT_READ | PROT_WRITE), 0);
  object->put(8 * kPageSize, pages_of('b', 2));
  EXPECT_EQ(object->missing_pages(), 10u);
  EXPECT_EQ(at(file, 9), 'b');
}

TEST(LazyObject, WhatLiesBehindItsEndIsNotMissedAnyMore) {
  const Fd file = memory_file(16 * kPageSize);
  const auto object = lazy(file, 16 * kPageSize, {{0, 16}});
  ASSERT_EQ(::ftruncate(file.get(), 4 * kPageSize), 0);
  object->put(2 * kPageSize, pages_of('a', 6));
  EXPECT_EQ(at(file, 3), 'a');
  EXPECT_EQ(object->missing_pages(), 10u);
  EXPECT_EQ(blocks_of(file), 4 * kBlocks);
  object->put(0, pages_of('b', 2));
  object->put(8 * kPageSize, pages_of('c', 8));
  EXPECT_EQ(object->missing_pages(), 0u);
}

/// On a file system of its own that makes huge pages wherever it can.
Fd huge_file(uint64_t bytes) {
  const Fd system(::fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!system || ::fsconfig(system.get(), FSCONFIG_SET_STRING, "huge", "always", 0) != 0 ||
      ::fsconfig(system.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
    return {};
  const Fd mount(::fsmount(system.get(), FSMOUNT_CLOEXEC, 0));
  Fd file(::openat(mount.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file || ::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return {};
  return file;
}

TEST(LazyObject, IsOfSmallPagesWhereHugeOnesAreMade) {
  constexpr int kCollapse = 25;
  constexpr uint64_t kBytes = 3 * kHuge, kPages = kBytes / kPageSize;
  const Fd file = huge_file(kBytes);
  if (!file) GTEST_SKIP() << "no tmpfs with huge pages";
  ASSERT_EQ(::pwrite(file.get(), "e", 1, 5 * kPageSize), 1);  // came before
  if (blocks_of(file) != kHuge / 512) GTEST_SKIP() << "no huge page is free";
  punch(file, 0, 5);
  punch(file, 6, 506);
  // A program's mappings are registered before this: khugepaged has no moment to fill the holes in.
  ASSERT_EQ(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
  const auto object = lazy(file, kBytes, {{0, 5}, {6 * kPageSize, kPages - 6}});
  ASSERT_EQ(::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
  EXPECT_EQ(allocated_pages(file.get(), 0, kBytes).value_or(kPages), kPages);

  auto* room = static_cast<char*>(::mmap(nullptr, kBytes + kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto* base = reinterpret_cast<char*>((reinterpret_cast<uint64_t>(room) + kHuge - 1) & ~(kHuge - 1));  // NOLINT
  ASSERT_EQ(::mmap(base, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(), 0), base);
  for (uint64_t i = 0; i < kBytes; i += kHuge) EXPECT_NE(::madvise(base + i, kHuge, kCollapse), 0) << i;

  constexpr uint64_t kTaken = 700;
  ASSERT_EQ(::madvise(base + kTaken * kPageSize, kPageSize, MADV_REMOVE), 0);
  object->put((kTaken - 1) * kPageSize, pages_of('x', 3));
  EXPECT_EQ(allocated_pages(file.get(), 0, kBytes).value_or(kPages - 1), kPages - 1)
      << "what was taken away has come back";
  EXPECT_EQ(at(file, kTaken - 1), 'x');
  EXPECT_EQ(at(file, kTaken), 0);
  EXPECT_EQ(at(file, kTaken + 1), 'x');
  EXPECT_EQ(at(file, 5), 'e');
  ::munmap(room, kBytes + kHuge);
}

TEST(LazyObject, HoldsAPageOfEachBlockOfMuchMemory) {
  constexpr uint64_t kBytes = 160UL << 30, kNeeded = 3UL << 30;
  if (memory_available() < kNeeded) GTEST_SKIP() << "needs 3 GiB";
  const Fd file = memory_file(kBytes);
  std::vector<PageRun> missing;
  for (uint64_t i = 0; i < kBytes; i += kHuge) missing.push_back({i, 1});
  const auto object = lazy(file, kBytes, std::move(missing));
  EXPECT_EQ(object->missing_pages(), kBytes / kHuge);
}

}  // namespace
}  // namespace migrate
