// Shared memory that is allocated in small pages.
#include "core/memory/small_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {
namespace {

TEST(SmallPages, AllocatesAllButTheFirstOfEachBlock) {
  if (makes_huge_pages()) GTEST_SKIP() << "the kernel makes huge pages of all shared memory here";
  const Fd file(::memfd_create("small", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), 3 * kHugePageSize), 0);
  const uint64_t old = 7;
  ASSERT_EQ(::pwrite(file.get(), &old, sizeof old, kHugePageSize + 5 * kPageSize), ssize_t{sizeof old});
  ASSERT_EQ(::pwrite(file.get(), &old, sizeof old, 3 * kPageSize), ssize_t{sizeof old});  // not among them
  PageSet pages;
  pages.append(4 * kPageSize, 6 * kPageSize);                                      // 5
  pages.append(8 * kPageSize, 9 * kPageSize);                                      // 8
  pages.append(kHugePageSize - 2 * kPageSize, 2 * kHugePageSize);                  // all but that at kHugePageSize
  pages.append(2 * kHugePageSize + kPageSize, 2 * kHugePageSize + 2 * kPageSize);  // none
  allocate_all_but_first(file.get(), pages);
  const auto there = [&](uint64_t offset, uint64_t bytes) { return are_allocated(file.get(), offset, bytes); };
  EXPECT_TRUE(there(3 * kPageSize, kPageSize));
  EXPECT_FALSE(there(4 * kPageSize, kPageSize));
  EXPECT_TRUE(there(5 * kPageSize, kPageSize));
  EXPECT_FALSE(there(6 * kPageSize, kPageSize));
  EXPECT_TRUE(there(8 * kPageSize, kPageSize));
  EXPECT_TRUE(there(kHugePageSize - 2 * kPageSize, 2 * kPageSize));
  EXPECT_FALSE(there(kHugePageSize, kPageSize));
  EXPECT_TRUE(there(kHugePageSize + kPageSize, kHugePageSize - kPageSize));
  EXPECT_FALSE(there(2 * kHugePageSize + kPageSize, kPageSize));
  uint64_t found = 1;
  ASSERT_EQ(::pread(file.get(), &found, sizeof found, kHugePageSize + 5 * kPageSize), ssize_t{sizeof found});
  EXPECT_EQ(found, 0U);
}

TEST(SmallPages, WhatTheKernelIsSetTo) {
  std::string folder = "/tmp/migrate-settings-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  EXPECT_FALSE(makes_huge_pages(folder));  // it knows none
  std::filesystem::create_directories(folder + "/hugepages-64kB");
  const auto set = [&](const char* all, const char* size) {
    std::ofstream(folder + "/shmem_enabled") << all << "\n";
    std::ofstream(folder + "/hugepages-64kB/shmem_enabled") << size << "\n";
    return makes_huge_pages(folder);
  };
  EXPECT_FALSE(set("always within_size advise [never] deny force", "always [inherit] within_size advise never"));
  EXPECT_FALSE(set("always within_size [advise] never deny force", "always inherit within_size [advise] never"));
  EXPECT_FALSE(set("always within_size advise never [deny] force", "always inherit within_size advise [never]"));
  EXPECT_TRUE(set("[always] within_size advise never deny force", "always inherit within_size advise [never]"));
  EXPECT_TRUE(set("always [within_size] advise never deny force", "always inherit within_size advise [never]"));
  EXPECT_TRUE(set("always within_size advise never deny [force]", "always inherit within_size advise [never]"));
  EXPECT_TRUE(set("always within_size advise [never] deny force", "[always] inherit within_size advise never"));
  EXPECT_TRUE(set("always within_size advise [never] deny force", "always inherit [within_size] advise never"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace migrate
