#include "pageserver/copying.h"

#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;

TEST(Copying, SlowIsWhatLiesJustBehindModuloAPage) {
  constexpr uintptr_t kFrom = 7 * kPageSize + 100;
  for (uintptr_t pages : {uintptr_t{0}, uintptr_t{1}, uintptr_t{5}}) {
    const uintptr_t to = kFrom + pages * kPageSize;
    EXPECT_FALSE(is_slow_copy(to, kFrom));
    EXPECT_TRUE(is_slow_copy(to + 1, kFrom));
    EXPECT_TRUE(is_slow_copy(to + 15, kFrom));
    EXPECT_FALSE(is_slow_copy(to + 16, kFrom));
    EXPECT_FALSE(is_slow_copy(to - 1, kFrom));
  }
  EXPECT_TRUE(is_slow_copy(kFrom - kPageSize + 8, kFrom));
}

TEST(Copying, CopiesExactly) {
  const auto data = random_bytes(3 * kPageSize, 1);
  const PageBuffer to(4 * kPageSize);
  for (const size_t offset : {0, 1, 8, 15, 16, 4095})
    for (const size_t size : {size_t{0}, size_t{1}, kSmallCopy - 1, kSmallCopy, kSmallCopy + 1, data.size()}) {
      std::memset(to.data(), 0x5a, 4 * kPageSize);
      copy_bytes(to.data() + offset, data.data(), size);
      EXPECT_EQ(std::memcmp(to.data() + offset, data.data(), size), 0) << offset << " " << size;
      if (offset > 0) {
        EXPECT_EQ(to.data()[offset - 1], std::byte{0x5a});
      }
      EXPECT_EQ(to.data()[offset + size], std::byte{0x5a}) << offset << " " << size;
    }
}

TEST(Copying, PageBufferIsAlignedAndGrows) {
  PageBuffer buffer(0);
  for (const size_t size : {size_t{1}, size_t{kPageSize + 1}, size_t{1} << 20}) {
    buffer.reserve(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kPageSize, 0U);
    EXPECT_EQ(buffer.first(size).size(), size);
    std::memset(buffer.data(), 1, size);
  }
  const std::byte* at = buffer.data();
  buffer.reserve(kPageSize);  // has that already
  EXPECT_EQ(buffer.data(), at);
}

}  // namespace
}  // namespace migrate
