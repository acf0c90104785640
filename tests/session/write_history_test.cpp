// In which order pages come that were left for later: those written last first, as the scans of dirty tracking tell.
#include "migrate/session/source/write_history.h"

#include <gtest/gtest.h>

#include <initializer_list>

namespace migrate {
namespace {

constexpr MemoryId kA{MemoryId::Kind::task, 7}, kB{MemoryId::Kind::task, 9};

PageRun run(uint64_t first, uint64_t pages) { return {.address = first * kPageSize, .pages = pages}; }

PageSource of(MemoryId memory, std::initializer_list<PageRun> runs) {
  return {.memory = memory, .runs = runs, .fd = {}};
}

std::vector<PageSource> all_of(std::initializer_list<std::pair<MemoryId, PageRun>> runs) {
  std::vector<PageSource> sources;
  for (const auto& [memory, r] : runs) sources.push_back(of(memory, {r}));
  return sources;
}

/// The fill without a fault, page by page.
std::vector<std::pair<MemoryId, uint64_t>> filled(const WriteHistory& history, std::span<const PageSource> late) {
  std::vector<RankedRun> runs = history.rank(late);
  FillOrder order(std::move(runs));
  std::vector<std::pair<MemoryId, uint64_t>> pages;
  while (const auto piece = order.next())
    for (uint64_t at = 0; at < piece->bytes; at += kPageSize)
      pages.emplace_back(piece->memory, (piece->address + at) / kPageSize);
  return pages;
}

TEST(WriteHistory, WhatWasWrittenLastComesFirst) {
  WriteHistory history;
  history.add(all_of({{kA, run(0, 10)}}));
  history.add(all_of({{kA, run(4, 2)}, {kA, run(20, 2)}, {kB, run(0, 4)}}));  // of a task there may be two
  history.add({{kA, PageSet(22 * kPageSize, 23 * kPageSize)}, {kB, PageSet(2 * kPageSize, 3 * kPageSize)}});
  const std::vector<PageSource> late = all_of({{kA, run(0, 30)}, {kB, run(0, 4)}});
  using Pages = std::vector<std::pair<MemoryId, uint64_t>>;
  EXPECT_EQ(filled(history, late), (Pages{{kB, 2},
                                          {kA, 22},
                                          {kA, 4},
                                          {kA, 5},
                                          {kA, 20},
                                          {kA, 21},
                                          {kB, 0},
                                          {kB, 1},
                                          {kB, 3},
                                          {kA, 0},
                                          {kA, 1},
                                          {kA, 2},
                                          {kA, 3},
                                          {kA, 6},
                                          {kA, 7},
                                          {kA, 8},
                                          {kA, 9}}))
      << "by when they were written last, then by when they were before that; what no scan found is not ranked";
}

TEST(WriteHistory, OnlyPagesThatAreLateAndTheLastScansCount) {
  WriteHistory history;
  EXPECT_TRUE(history.rank(all_of({{kA, run(0, 4)}})).empty());
  history.add(all_of({{kA, run(100, 1)}}));
  for (int i = 0; i < 3; ++i) history.add(all_of({{kA, run(0, 8)}}));
  const auto order = history.rank(all_of({{kA, run(6, 100)}, {kB, run(0, 2)}}));
  ASSERT_EQ(order.size(), 1u);
  EXPECT_EQ(order[0].memory, kA);
  EXPECT_EQ(order[0].run.address, 6 * kPageSize);
  EXPECT_EQ(order[0].run.pages, 2u);
}

}  // namespace
}  // namespace migrate
