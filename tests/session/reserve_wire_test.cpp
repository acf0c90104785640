#include "migrate/session/wire/reserve_wire.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace migrate {
namespace {

const MemoryId kMemory{MemoryId::Kind::task, 42};
constexpr uint64_t kHugePages = 512;

TEST(ReserveWire, EvenNothingIsSaid) {
  const auto parts = to_wire(std::span<const PageReserve>());
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_TRUE(from_wire(parts[0]).empty());
}

TEST(ReserveWire, PartsHoldAllInOrderAndHugePagesStayWhole) {
  std::vector<PageReserve> pages{{kMemory, 0x1000, 3, false}, {kMemory, 0x40000000, 400 * kHugePages, true}};
  for (uint64_t i = 0; i < 50'000; ++i) pages.push_back({kMemory, (uint64_t{1} << 40) + i * 0x4000, 2, false});
  const auto parts = to_wire(pages);
  EXPECT_GT(parts.size(), 4u);
  std::vector<PageReserve> joined;
  for (const wire::Reserve& part : parts) {
    uint64_t in_part = 0;
    for (const PageReserve& run : from_wire(part)) {
      in_part += run.pages;
      EXPECT_TRUE(!run.huge_pages || run.address % (kHugePages * kPageSize) == 0);
      if (!joined.empty() && joined.back().huge_pages == run.huge_pages &&
          joined.back().address + joined.back().pages * kPageSize == run.address) {
        joined.back().pages += run.pages;
      } else {
        joined.push_back(run);
      }
    }
    EXPECT_LE(in_part, 65'536u);
  }
  EXPECT_EQ(joined, pages);
}

TEST(ReserveWire, ImpossibleRunsAreRefused) {
  const auto refused = [](uint32_t kind, uint64_t address, uint64_t pages, bool huge) {
    wire::Reserve reserve;
    wire::Reserve::Run* run = reserve.add_runs();
    run->set_kind(kind);
    run->set_address(address);
    run->set_pages(pages);
    run->set_huge_pages(huge);
    try {
      from_wire(reserve);
    } catch (const Corrupt&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused(1, 0x200000, 512, true));
  EXPECT_TRUE(refused(3, 0x200000, 1, false));
  EXPECT_TRUE(refused(1, 0x200001, 1, false));
  EXPECT_TRUE(refused(1, 0x201000, 512, true));
  EXPECT_TRUE(refused(1, 0x200000, 513, true));
  EXPECT_TRUE(refused(1, 0x1000, 65'537, false));
  EXPECT_TRUE(refused(1, 0x7ffffffff000, 1, false));
  EXPECT_TRUE(refused(1, UINT64_MAX - 4095, 1, false));
  wire::Reserve many;
  for (int i = 0; i < 20'001; ++i) many.add_runs()->set_kind(1);
  EXPECT_THROW(from_wire(many), Corrupt);
}

}  // namespace
}  // namespace migrate
