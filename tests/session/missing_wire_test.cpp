// Sets of missing pages as messages: they come back as they were, and what a peer cannot mean is refused.
#include "migrate/session/wire/missing_wire.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr MemoryId kTask{MemoryId::Kind::task, 7}, kOther{MemoryId::Kind::task, 9};

PageSet every_other(uint64_t pages) {
  PageSet set;
  for (uint64_t i = 0; i < pages; ++i) set.append(2 * i * kPageSize, (2 * i + 1) * kPageSize);
  return set;
}

PagesByMemory back(const std::vector<wire::Discards>& parts) {
  PagesByMemory pages;
  for (const wire::Discards& part : parts) add_from_wire(part, pages);
  return pages;
}

TEST(MissingWire, ComesBackAsItWas) {
  const PagesByMemory pages{{kTask, every_other(120'000)}, {kOther, PageSet(kPageSize, 5 * kPageSize)}};
  const std::vector<wire::Discards> parts = to_wire(pages);
  EXPECT_GT(parts.size(), 1u);
  EXPECT_TRUE(parts.back().last());
  EXPECT_FALSE(parts.front().last());
  EXPECT_EQ(back(parts), pages);
  PagesByMemory whole;
  add_from_wire(whole_to_wire(pages), whole);
  EXPECT_EQ(whole, pages);
  EXPECT_EQ(to_wire(PagesByMemory{}).size(), 1u);
}

TEST(MissingWire, WhatIsSaidTwiceOrOutOfOrderIsOneSet) {
  wire::Discards part;
  for (const uint64_t page : {8, 2, 4, 2, 3}) {
    wire::Discards::Run* run = part.add_runs();
    run->set_kind(1);
    run->set_id(7);
    run->set_address(page * kPageSize);
    run->set_pages(2);
  }
  PagesByMemory pages;
  add_from_wire(part, pages);
  add_from_wire(part, pages);
  PageSet right(2 * kPageSize, 6 * kPageSize);
  right.append(8 * kPageSize, 10 * kPageSize);
  EXPECT_EQ(pages, (PagesByMemory{{kTask, right}}));
}

std::string refusal(PartsBound& bound, const wire::Discards& part) {
  try {
    bound.count(part);
  } catch (const Corrupt& e) {
    return e.what();
  }
  return {};
}

// Each would be put among all that are there.
TEST(MissingWire, ManyPartsOfOneRunAreRefused) {
  PartsBound honest("huge pages", 1'000'000), hostile("huge pages", 1'000'000);
  for (const wire::Discards& part : to_wire({{kTask, every_other(1'000'000)}})) EXPECT_EQ(refusal(honest, part), "");
  const wire::Discards one = to_wire({{kTask, every_other(1)}}).front();
  EXPECT_NE(refusal(honest, one).find("tells of huge pages, and of too many"), std::string::npos);
  int taken = 0;
  while (taken < 1000 && refusal(hostile, one).empty()) ++taken;
  EXPECT_EQ(taken, 21);
  EXPECT_NE(refusal(hostile, one).find("tells of huge pages in too many parts"), std::string::npos);
}

TEST(MissingWire, ImpossibleRangesAreRefused) {
  const auto refused = [](uint32_t kind, uint64_t address, uint64_t count) {
    wire::Discards part;
    wire::Discards::Run* run = part.add_runs();
    run->set_kind(kind);
    run->set_address(address);
    run->set_pages(count);
    PagesByMemory pages;
    EXPECT_THROW(add_from_wire(part, pages), Corrupt) << kind << " " << address << " " << count;
    EXPECT_TRUE(pages.empty());
  };
  refused(3, 0, 1);
  refused(1, 1, 1);
  refused(1, kUserEnd, 1);
  refused(1, 0, UINT64_MAX);
  refused(1, UINT64_MAX - kPageSize + 1, 2);
}

}  // namespace
}  // namespace migrate
