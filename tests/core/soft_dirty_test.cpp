// Dirty tracking by soft-dirty bits: against a model of a kernel that has them, and the real /proc as far as it goes.
//
// MIGRATE_TRACK_SEEDS=N runs N seeds, from MIGRATE_TRACK_FIRST on (scripts/prove-tracker).
#include "core/memory/soft_dirty.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/features.h"
#include "tests/core/seeds.h"
#include "tests/core/soft_dirty_model.h"
#include "tests/core/tracking.h"
#include "tests/core/zero_page.h"

namespace migrate {
namespace {

/// Empty: equal at the end.
std::string track(uint64_t seed, const TrackRules& rules) {
  std::mt19937_64 random(seed);
  SoftDirtyModel model(seed, {.hidden_frames = seed % 5 == 0,
                              .no_exclusive_bit = seed % 7 == 0,
                              .merges_pages = seed % 3 == 0,
                              .dumps_zero_pages = seed % 4 != 0});
  model.run(200);
  const LoggerPtr log = null_logger();
  DirtyTracker tracker({.root = Pid(1), .by_content = seed % 2 == 0, .backend = model.backend(), .rules = rules}, *log);
  ModelReceiver receiver;
  const uint64_t rounds = 1 + random() % 6;
  for (uint64_t i = 0; i < rounds; ++i) {
    const DirtyTracker::Round round = tracker.next_round();
    if (random() % 4 == 0) model.run(random() % 50);
    if (random() % 6 == 0) {  // not sent
      tracker.put_back(round);
      continue;
    }
    receiver.apply(round);
    model.run(random() % 300);
  }
  const auto stopped = model.backend()->pause();
  return receiver.finish(tracker, model.everything());
}

TEST(SoftDirty, ReceiverEndsWithTheSameMemory) {
  for (const uint64_t seed : track_seeds(60)) EXPECT_EQ(track(seed, {}), "") << "seed " << seed;
}

TEST(SoftDirty, EachRuleIsNeeded) {
  const std::pair<const char*, bool TrackRules::*> mutants[] = {
      {"stop the tree to read and clear", &TrackRules::stop_to_clear},
      {"the page of zeros is new", &TrackRules::zero_page_is_new},
      {"leave what KSM may merge", &TrackRules::leave_mergeable},
      {"new memories are not known", &TrackRules::new_memory},
      {"report discards", &TrackRules::report_discards},
      {"zeros over contents", &TrackRules::zeros_over_contents},
      {"send what was written", &TrackRules::send_written},
      {"scan at the end", &TrackRules::last_scan},
  };
  for (const auto& [name, rule] : mutants) {
    TrackRules rules;
    rules.*rule = false;
    expect_noticed("soft-dirty", name, 300, [&](uint64_t seed) { return track(seed, rules); });
  }
}

TEST(SoftDirty, RoundsHoldWhatWasWritten) {
  SoftDirtyModel model(1, {});
  model.run(300);
  const LoggerPtr log = null_logger();
  DirtyTracker tracker({.root = Pid(1), .backend = model.backend()}, *log);
  const auto stopped = model.backend()->pause();
  const uint64_t all = tracker.next_round().pages;
  EXPECT_GT(all, 100u);
  EXPECT_LT(tracker.next_round().pages, all / 4);  // pinned ones
}

TEST(SoftDirty, RealFilesTellZeroPages) {
  auto* area = static_cast<volatile char*>(
      ::mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  static_cast<void>(area[0]);
  area[kPageSize] = 1;
  const auto files = real_soft_dirty_files(::getpid());
  files->attach();
  uint64_t words[2] = {};
  const uint64_t page = reinterpret_cast<uintptr_t>(area) / kPageSize;
  ASSERT_EQ(files->pagemap(page, words), 2u);
  constexpr uint64_t kFrame = (uint64_t{1} << 55) - 1;
  if ((words[0] & kFrame) == 0) GTEST_SKIP() << "pagemap hides frame numbers: needs CAP_SYS_ADMIN";
  EXPECT_EQ(files->is_zero_page(words[0] & kFrame, page), std::optional(kernel_maps_zero_page()));
  EXPECT_EQ(files->is_zero_page(words[1] & kFrame, page + 1), std::optional(false));
  EXPECT_EQ(files->is_zero_page(0, page), std::nullopt);
  EXPECT_NO_THROW(files->clear_refs());
  EXPECT_FALSE(files->own_root());
  EXPECT_FALSE(files->ends_within(std::chrono::milliseconds(0)));
  EXPECT_NE(files->read("smaps").find("VmFlags"), std::string::npos);
  ::munmap(const_cast<char*>(area), 2 * kPageSize);
}

TEST(SoftDirty, TheBestWayIsChosen) {
  const DirtyTracking way = probe_dirty_tracking();
  const auto has = [](const char* name) {
    for (const Feature& f : probe_features())
      if (f.name == name) return f.present;
    return false;
  };
  EXPECT_EQ(way == DirtyTracking::write_protection, has("uffd_wp_async"));
  if (way != DirtyTracking::write_protection) {
    EXPECT_EQ(way == DirtyTracking::soft_dirty, has("mem_dirty_track"));
  }
}

}  // namespace
}  // namespace migrate
