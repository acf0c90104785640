// Warm fill: shells and their staging memory follow a tree that runs on, pages come over rounds, and what is restored
// in the end equals what was stopped.
#include "tests/core/restore_warm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace migrate::warm_test {
namespace {

TEST_F(RestoreWarm, MemoryGrowsShrinksAndIsDiscarded) {
  EXPECT_EQ(round().size(), 1u);
  const uint64_t all = written_;
  for (const char* commands : {"g", "w", "d", "gs", "gwd", "m", "p", "ss", "ggw", "mmp", "nw"}) {
    order(commands);
    EXPECT_TRUE(round().empty()) << commands;
    EXPECT_LT(written_, all) << commands;
    EXPECT_EQ(staged_pages(restore_->tasks().front().get()), sent_.begin()->second.size())
        << "as much as the source has";
  }
  order("wdmp");
  move();
  EXPECT_LT(written_, all) << "what was filled is kept";
  EXPECT_TRUE(restore_->cold().empty());
}

TEST_F(RestoreWarm, TasksComeAndGo) {
  EXPECT_EQ(round().size(), 1u);
  order("f");
  EXPECT_EQ(round().size(), 1u) << "the new task";
  order("S");
  EXPECT_TRUE(round().empty());
  order("fw");
  EXPECT_EQ(round().size(), 1u);
  order("G");
  EXPECT_TRUE(round().empty());
  order("k");
  EXPECT_TRUE(round().empty());
  order("fg");
  EXPECT_EQ(round().size(), 1u);
  order("f");  // known to the final images only
  move();
  EXPECT_EQ(restore_->cold().size(), 1u) << "that task";
}

TEST_F(RestoreWarm, TasksThatEndBecomeZombies) {
  order("f");
  EXPECT_EQ(round().size(), 2u);
  order("fz");
  move();
}

TEST_F(RestoreWarm, AnotherSessionIsBuiltAnew) {
  order("f");
  TreeLayout wrong = Tree(source_).layout();
  ASSERT_EQ(wrong.tasks.size(), 2u);
  wrong.tasks[1].sid = wrong.tasks[1].pgid = wrong.tasks[1].pid;
  EXPECT_EQ(round_with(wrong).size(), 2u);
  const Pid init = restore_->init();
  order("w");
  EXPECT_EQ(round().size(), 2u) << "all is cold";
  EXPECT_NE(restore_->init(), init);
  order("d");
  EXPECT_TRUE(round().empty());
  move();
}

TEST_F(RestoreWarm, ShellThatDiedIsMadeAnew) {
  order("f");
  EXPECT_EQ(round().size(), 2u);
  ::kill(restore_->tasks().back().get(), SIGKILL);
  EXPECT_EQ(round().size(), 2u) << "all is cold";
  move();
}

/// MIGRATE_TEST_SEED and what follows it.
class RestoreWarmRandom : public RestoreWarm, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Seeds, RestoreWarmRandom, testing::Range(0, 6));

TEST_P(RestoreWarmRandom, EndsEqual) {
  const char* first = std::getenv("MIGRATE_TEST_SEED");
  std::mt19937 random(static_cast<unsigned>((first != nullptr ? std::atoi(first) : 0) + GetParam()));
  std::string all;
  for (int rounds = 0; rounds < 8; ++rounds) {
    for (unsigned n = random() % 5; n > 0; --n) {
      const char c = "ggswwddfffkzSGmmppn"[random() % 19];
      all += c;
      order(std::string(1, c));
    }
    all += '|';
    if (rounds < 7) round();
  }
  SCOPED_TRACE(all);
  move();
}

/// Whether or not pages may come late.
class RestoreWarmLazy : public RestoreWarm, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    RestoreWarm::SetUp();
    if (!IsSkipped()) restore_.emplace(RestoreOptions{.own_namespaces = true, .lazy = GetParam()}, *log_);
  }
  /// What the source must send all of.
  size_t cold_tasks() const {
    return static_cast<size_t>(std::ranges::count(restore_->cold(), MemoryId::Kind::task, &MemoryId::kind));
  }
};
INSTANTIATE_TEST_SUITE_P(MayBe, RestoreWarmLazy, testing::Bool());

TEST_P(RestoreWarmLazy, ATaskThatIsNewInTheFinalImagesIsCold) {
  order("f");
  EXPECT_EQ(round().size(), 2u);
  order("f");
  move();
  EXPECT_EQ(cold_tasks(), 1u);
}

TEST_P(RestoreWarmLazy, MadeAnewForTheFinalImagesAllIsCold) {
  order("f");
  EXPECT_EQ(round().size(), 2u);
  ::kill(restore_->tasks().back().get(), SIGKILL);
  move();
  EXPECT_EQ(cold_tasks(), 2u);
}

TEST_F(RestoreWarm, FirstKnownWithTheFinalImages) {
  move();
  EXPECT_EQ(restore_->cold().size(), 3u) << "the task, shared memory, a memfd";
}

TEST_F(RestoreWarm, TellsWhatItOccupies) {
  constexpr uint64_t kOwn = 2 << 20;  // page tables, and what a shell needs itself
  const auto sent = [&] {
    uint64_t pages = 0;
    for (const auto& [memory, contents] : sent_) pages += contents.size();
    return pages * kPageSize;
  };
  EXPECT_EQ(restore_->memory_bytes(), 0u);
  order("f");
  round();
  const uint64_t first = restore_->memory_bytes();
  EXPECT_GE(first + kOwn, sent());
  EXPECT_LE(first, sent() + 2 * kOwn);
  order("gg");
  const uint64_t before = sent();
  round();
  EXPECT_GT(sent(), before);
  EXPECT_GE(restore_->memory_bytes() + kOwn, first + (sent() - before));
  std::vector<PageDiscard> everything;
  for (const auto& [memory, contents] : sent_) everything.push_back({memory, 0, (uint64_t{1} << 47) / kPageSize});
  restore_->discard_pages(everything);
  EXPECT_LE(restore_->memory_bytes(), 2 * kOwn);
  restore_->discard();
  EXPECT_EQ(restore_->memory_bytes(), 0u);
}

TEST_F(RestoreWarm, DiscardLeavesNothing) {
  order("f");
  round();
  restore_->discard();
  EXPECT_TRUE(gate_->members().empty());
  EXPECT_EQ(round().size(), 2u) << "and it can begin again";
}

}  // namespace
}  // namespace migrate::warm_test
