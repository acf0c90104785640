// The order of the background fill, and pages that come from files in that order.
#include "lazypages/fill_order.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "core/base/error.h"
#include "lazypages/stored_origin.h"
#include "tests/lazypages/lazy_program.h"

namespace migrate {
namespace {

using lazy_testing::kPatience;
constexpr MemoryId kA{MemoryId::Kind::task, 1}, kB{MemoryId::Kind::task, 2};
constexpr uint64_t kAt = 0x10000000;

uint64_t page(uint64_t n) { return kAt + n * kPageSize; }
FillPiece piece(MemoryId memory, uint64_t first, uint64_t pages) { return {memory, page(first), pages * kPageSize}; }

TEST(FillOrder, HottestFirstThenAsGiven) {
  FillOrder order({{kA, {page(0), 20}, 1}, {kB, {page(0), 3}, 5}, {kA, {page(30), 2}, 5}, {kB, {page(50), 1}, 1}});
  EXPECT_EQ(order.pages_left(), 26u);
  EXPECT_EQ(order.next(), piece(kB, 0, 3));
  EXPECT_EQ(order.next(), piece(kA, 30, 2));
  EXPECT_EQ(order.next(), piece(kA, 0, 16));
  EXPECT_EQ(order.next(), piece(kA, 16, 4));
  EXPECT_EQ(order.next(), piece(kB, 50, 1));
  EXPECT_EQ(order.next(), std::nullopt);
  EXPECT_EQ(order.pages_left(), 0u);
  order.put_back(kA, page(18), 2 * kPageSize);
  EXPECT_EQ(order.next(), piece(kA, 18, 2));
  EXPECT_EQ(order.next(), std::nullopt);
}

TEST(FillOrder, NeighboursOfTheLatestFaultComeFirstAndFurtherWhenItGoesOn) {
  FillOrder order({{kA, {page(0), 10000}, 0}});
  order.faulted(kA, page(5000));
  EXPECT_EQ(order.next(), piece(kA, 5001, 7));
  EXPECT_EQ(order.next(), piece(kA, 4992, 8));
  EXPECT_EQ(order.next(), piece(kA, 0, 16)) << "no more of it";
  order.faulted(kA, page(5008));
  EXPECT_EQ(order.next(), piece(kA, 5009, 15));
  order.faulted(kA, page(9000));
  EXPECT_EQ(order.next(), piece(kA, 9001, 7)) << "the latest";
  EXPECT_EQ(order.next(), piece(kA, 8992, 8));
  EXPECT_EQ(order.next(), piece(kA, 16, 16)) << "all around is there";
}

TEST(FillOrder, EveryPageIsGivenOnceWhateverComesBetween) {
  std::mt19937_64 random(5);
  std::vector<RankedRun> runs;
  std::set<std::pair<MemoryId, uint64_t>> left;
  for (uint64_t at = 0; at < 3000; at += 1 + random() % 60) {
    const uint64_t pages = 1 + random() % 40;
    const MemoryId memory = random() % 2 == 0 ? kA : kB;
    runs.push_back({memory, {page(at), pages}, random() % 5});
    for (uint64_t i = 0; i < pages; ++i) left.emplace(memory, page(at + i));
    at += pages;
  }
  FillOrder order(runs);
  ASSERT_EQ(order.pages_left(), left.size());
  while (const auto next = order.next((1 + random() % 16) * kPageSize)) {
    ASSERT_GT(next->bytes, 0u);
    for (uint64_t o = 0; o < next->bytes; o += kPageSize) ASSERT_EQ(left.erase({next->memory, next->address + o}), 1u);
    ASSERT_EQ(order.pages_left(), left.size());
    const uint64_t at = page(random() % 3100);
    if (random() % 3 == 0) {
      order.faulted(kA, at);
      left.erase({kA, at});
    } else if (random() % 5 == 0) {
      order.leave_out(kB, at, 3 * kPageSize);
      for (int i = 0; i < 3; ++i) left.erase({kB, at + static_cast<uint64_t>(i) * kPageSize});
    }
  }
  EXPECT_TRUE(left.empty());
}

TEST(StoredOrigin, FillsMemoryFromFilesWhileItIsRead) {
  using namespace lazy_testing;
  constexpr uint64_t kPages = 2000;
  LazyProgram program(kPages, [](char* base, Talk&) {
    for (uint64_t i = 0; i < kPages; ++i) {
      const uint64_t at = i * 1237 % kPages;
      const auto* words = reinterpret_cast<const volatile uint64_t*>(base + at * kPageSize);
      for (uint64_t w = 0; w < 512; ++w)
        if (words[w] != (exists(at) ? word_of(at, w) : 0)) return 1;
    }
    return 0;
  });
  const Fd file(::memfd_create("pages", MFD_CLOEXEC));
  std::vector<StoredPages> stored;
  std::vector<RankedRun> ranked;
  std::vector<LazyMemory> all;
  all.push_back(program.register_memory());
  uint64_t offset = 0;
  for (const PageRun& run : all[0].missing) {
    // In pieces that are not the fill's.
    for (uint64_t i = 0; i < run.pages; ++i) {
      std::vector<uint64_t> words;
      for (uint64_t w = 0; w < 512; ++w) words.push_back(word_of((run.address - program.base()) / kPageSize + i, w));
      pwrite_full(file.get(), std::as_bytes(std::span(words)), offset, "pages");
      stored.push_back({run.address + i * kPageSize, kPageSize, file.get(), offset});
      offset += kPageSize;
    }
    ranked.push_back({kMemory, run, run.address});
  }
  StoredOrigin origin({{kMemory, stored}});
  LazyMemories memories(std::move(all), [&](MemoryId memory, uint64_t source) { origin.want(memory, source); });
  origin.start(memories, FillOrder(ranked));
  program.go();
  const Deadline deadline = Deadline::in(kPatience);
  while (!memories.whole() && !deadline.passed()) memories.serve(std::chrono::milliseconds(10));
  EXPECT_NO_THROW(origin.check());
  EXPECT_TRUE(memories.whole());
  origin.stop();
  memories.finish();
  EXPECT_EQ(program.ended(), 0);
}

}  // namespace
}  // namespace migrate
