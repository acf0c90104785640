// Shared memory that is allocated in small pages.
#include "core/memory/small_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {
namespace {

constexpr uint64_t kSmallBlock = 2 << 20;

TEST(SmallPages, AllocatesAllButTheFirstOfEachBlock) {
  if (makes_huge_pages()) GTEST_SKIP() << "the kernel makes huge pages of all shared memory here";
  const Fd file(::memfd_create("small", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), 3 * kSmallBlock), 0);
  const uint64_t old = 7;
  ASSERT_EQ(::pwrite(file.get(), &old, sizeof old, kSmallBlock + 5 * kPageSize), ssize_t{sizeof old});
  ASSERT_EQ(::pwrite(file.get(), &old, sizeof old, 3 * kPageSize), ssize_t{sizeof old});  // not among them
  PageSet pages;
  pages.append(4 * kPageSize, 6 * kPageSize);                                  // 5
  pages.append(8 * kPageSize, 9 * kPageSize);                                  // 8
  pages.append(kSmallBlock - 2 * kPageSize, 2 * kSmallBlock);                  // all but that at kSmallBlock
  pages.append(2 * kSmallBlock + kPageSize, 2 * kSmallBlock + 2 * kPageSize);  // none
  allocate_all_but_first(file.get(), pages);
  const auto there = [&](uint64_t offset, uint64_t bytes) { return are_allocated(file.get(), offset, bytes); };
  EXPECT_TRUE(there(3 * kPageSize, kPageSize));
  EXPECT_FALSE(there(4 * kPageSize, kPageSize));
  EXPECT_TRUE(there(5 * kPageSize, kPageSize));
  EXPECT_FALSE(there(6 * kPageSize, kPageSize));
  EXPECT_TRUE(there(8 * kPageSize, kPageSize));
  EXPECT_TRUE(there(kSmallBlock - 2 * kPageSize, 2 * kPageSize));
  EXPECT_FALSE(there(kSmallBlock, kPageSize));
  EXPECT_TRUE(there(kSmallBlock + kPageSize, kSmallBlock - kPageSize));
  EXPECT_FALSE(there(2 * kSmallBlock + kPageSize, kPageSize));
  uint64_t found = 1;
  ASSERT_EQ(::pread(file.get(), &found, sizeof found, kSmallBlock + 5 * kPageSize), ssize_t{sizeof found});
  EXPECT_EQ(found, 0U);
}

}  // namespace
}  // namespace migrate
