// How staging memory and the tasks that hold it change to follow a tree: plans, and the mappings themselves.
#include "core/restore/staged_areas.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "core/restore/tree_order.h"
#include "tests/core/places.h"

namespace migrate {
namespace {

TEST(StagedAreasPlan, KeepsWhatIsTheSame) {
  const std::vector<StagedArea> have{{0x1000, 0x5000}, {0x5000, 0x9000, true}, {0x20000, 0x30000}};
  const std::vector<StagedArea> want{{0x0000, 0x2000}, {0x3000, 0x6000}, {0x6000, 0x8000, true}, {0x28000, 0x38000}};
  const AreaChange change = compare_areas(have, want);
  EXPECT_TRUE(change.replaced);
  EXPECT_EQ(change.kept,
            (std::vector<StagedArea>{{0x1000, 0x2000}, {0x3000, 0x5000}, {0x6000, 0x8000, true}, {0x28000, 0x30000}}));
  EXPECT_EQ(change.dropped, (std::vector<StagedArea>{
                                {0x2000, 0x3000}, {0x5000, 0x6000, true}, {0x8000, 0x9000, true}, {0x20000, 0x28000}}));
  EXPECT_EQ(change.added, (std::vector<StagedArea>{{0x0000, 0x1000}, {0x5000, 0x6000}, {0x30000, 0x38000}}));
}

TEST(StagedAreasPlan, DistanceGivesWayAndAFullSpaceIsTold) {
  const std::vector<AddressRange> staged{{0x10000000000, 0x18000000000}};
  const uint64_t first = pick_distance(staged, {}, {});
  const std::vector<AddressRange> there{{staged_address(0x10000000000, first), staged_address(0x18000000000, first)}};
  const uint64_t second = pick_distance(staged, there, {});
  EXPECT_NE(first, second);
  EXPECT_NE(pick_distance(staged, {}, there), first);
  EXPECT_FALSE(distance_fits(first, staged, there));
  const std::vector<AddressRange> most{{0x10000, 0x500000000000}};
  EXPECT_THROW(pick_distance(most, {}, {}), Error);
}

TEST(StagedAreasMapped, ContentsOutliveMovesAndDiscardsAreHoles) {
  constexpr uint64_t kFinal = 0x30000000000;
  StagedAreas areas(::getpid());
  const std::vector<StagedArea> first{{kFinal, kFinal + (4 << 20)}};
  EXPECT_FALSE(areas.follow(first, {}, {}, false));
  EXPECT_TRUE(areas.areas().front().registered);
  EXPECT_FALSE(areas.follow(first, {}, {}, false));
  EXPECT_FALSE(areas.areas().front().registered);
  std::memset(at(areas.staging(kFinal)), 0x5a, 4 << 20);
  areas.discard({kFinal + (1 << 20), kFinal + (2 << 20)});
  areas.discard({0, uint64_t{1} << 40});  // not staged
  // It grows on both sides, loses a part, and something of the final address space comes to where it is staged.
  const uint64_t old = areas.staging(kFinal);
  const std::vector<StagedArea> grown{{kFinal - (1 << 20), kFinal + (3 << 20)},
                                      {kFinal + (7 << 19), kFinal + (5 << 20)}};
  const std::vector<AddressRange> others{{old, old + kPageSize}};
  EXPECT_FALSE(areas.follow(grown, {}, others, false));
  EXPECT_NE(areas.staging(kFinal), old);
  EXPECT_FALSE(areas.follow(grown, {}, others, true));
  const auto all = [&](uint64_t from, uint64_t to, int value) {
    for (uint64_t i = from; i < to; i += 512)
      if (*at(areas.staging(kFinal + i)) != static_cast<std::byte>(value)) return false;
    return true;
  };
  EXPECT_TRUE(all(0, 1 << 20, 0x5a));
  EXPECT_TRUE(all(1 << 20, 2 << 20, 0));
  EXPECT_TRUE(all(2 << 20, 3 << 20, 0x5a));
  EXPECT_TRUE(all(7 << 19, 4 << 20, 0x5a));
  EXPECT_TRUE(all(4 << 20, 5 << 20, 0));
  EXPECT_FALSE(areas.follow({}, {}, {}, true));
}

TEST(StagedAreasPlan, AnotherFileOrPlaceInItIsAnotherKind) {
  const FileKey one{1, 10}, other{1, 11};
  StagedArea area{.start = 0x10000, .end = 0x20000, .file = one, .base = 0x1000};
  std::vector<StagedArea> have{area};
  for (const FileKey& file : {FileKey{}, other}) {
    area.file = file;
    EXPECT_TRUE(compare_areas(have, {area}).replaced);
  }
  area.file = one;
  area.start += 0x4000;
  EXPECT_EQ(compare_areas(have, {area}).kept, (std::vector<StagedArea>{area})) << "a part of it";
  area.base += kPageSize;
  EXPECT_TRUE(compare_areas(have, {area}).replaced);
}

TEST(StagedAreasMapped, DiscardedCopiesShowTheFile) {
  constexpr uint64_t kFinal = 0x30000000000, kBytes = 8 * kPageSize;
  const Fd file(::memfd_create("file", MFD_CLOEXEC));
  std::vector<char> text(2 * kBytes, 'f');
  ASSERT_EQ(::pwrite(file.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  const FileKey key{1, 10};
  const StagedFiles files{{key, file.get()}};
  StagedAreas areas(::getpid());
  const StagedArea area{.start = kFinal, .end = kFinal + kBytes, .file = key, .base = kPageSize - kFinal};
  EXPECT_FALSE(areas.follow({area}, files, {}, false));
  EXPECT_FALSE(areas.areas().front().registered);
  std::memset(at(areas.staging(kFinal)), 'm', 2 * kPageSize);
  areas.discard({kFinal, kFinal + kPageSize});
  EXPECT_FALSE(areas.follow({area}, files, {}, true)) << "it is kept";
  EXPECT_EQ(*at(areas.staging(kFinal)), std::byte{'f'});
  EXPECT_EQ(*at(areas.staging(kFinal + kPageSize)), std::byte{'m'});
  char c = 0;
  ASSERT_EQ(::pread(file.get(), &c, 1, 2 * kPageSize), 1);
  EXPECT_EQ(c, 'f') << "a private copy";
  EXPECT_FALSE(areas.follow({}, {}, {}, true));
}

std::vector<TaskNode> tree_of(std::vector<std::array<pid_t, 4>> rows) {
  TreeLayout layout;
  for (const auto& [pid, ppid, pgid, sid] : rows) layout.tasks.push_back({pid, ppid, pgid, sid, -1, SIGCHLD, {}});
  return read_tree(layout);
}

TEST(RestoreTreeChange, NewGoneAndChanged) {
  const auto have = tree_of({{10, 0, 10, 10}, {11, 10, 10, 10}, {12, 11, 10, 10}, {13, 10, 10, 10}});
  auto want = tree_of({{10, 0, 10, 10}, {13, 10, 13, 13}, {14, 13, 14, 13}, {15, 10, 13, 10}});
  EXPECT_THROW(plan_change(have, want = tree_of({{10, 0, 10, 10}, {12, 10, 10, 10}})), Error) << "another parent";
  EXPECT_THROW(plan_change(have, want = tree_of({{10, 0, 10, 10}, {13, 10, 13, 9}})), Error) << "another session";
  EXPECT_THROW(plan_change(have, want = tree_of({{11, 0, 10, 10}})), Error) << "another root";
  want = tree_of({{10, 0, 10, 10}, {13, 10, 13, 13}, {14, 13, 14, 13}, {15, 10, 20, 10}, {16, 15, 20, 10}});
  const TreeChange change = plan_change(have, want);
  ASSERT_EQ(change.gone.size(), 2u);
  EXPECT_EQ(change.gone[0].pid, 12);
  EXPECT_EQ(change.gone[0].parent, 11);
  EXPECT_EQ(change.gone[1].pid, 11);
  EXPECT_EQ(change.affected, (std::vector<int>{0, 1}));
  EXPECT_EQ(change.fresh, (std::vector<bool>{false, false, true, true, true}));
  EXPECT_TRUE(want[1].new_session);
  EXPECT_TRUE(want[2].new_group);
  EXPECT_EQ(want[3].group_helper, 20);
  EXPECT_EQ(want[4].group_helper, 0);
  EXPECT_EQ(want[4].join_group, 20);
}

TEST(RestoreTreeChange, HostileLayoutsAreThrownOut) {
  EXPECT_THROW(tree_of({}), Corrupt);
  EXPECT_THROW(tree_of({{10, 0, 10, 10}, {10, 10, 10, 10}}), Corrupt);
  EXPECT_THROW(tree_of({{10, 0, 10, 10}, {12, 11, 10, 10}}), Corrupt);
  EXPECT_THROW(tree_of({{-4, 0, 10, 10}}), Corrupt);
  for (const auto& [start, end] :
       {std::pair<uint64_t, uint64_t>{0x2000, 0x1000}, {0x1001, 0x3000}, {0x1000, ~uint64_t{0xfff}}}) {
    TreeLayout layout;
    layout.tasks.push_back({10, 0, 10, 10, -1, SIGCHLD, {{start, end}}});
    EXPECT_THROW(read_tree(layout), Corrupt);
  }
}

TEST(StagedAreasMapped, WhatGrewIsOneMapping) {
  constexpr uint64_t kFinal = 0x32000000000, kPart = 1 << 20;
  StagedAreas areas(::getpid());
  // Two that are apart, each written while it is registered or not; then what lies between them comes.
  EXPECT_FALSE(areas.follow({{kFinal, kFinal + kPart}, {kFinal + 2 * kPart, kFinal + 3 * kPart}}, {}, {}, false));
  EXPECT_FALSE(areas.follow({{kFinal, kFinal + kPart}, {kFinal + 2 * kPart, kFinal + 3 * kPart}}, {}, {}, false));
  std::memset(at(areas.staging(kFinal)), 1, kPart);
  std::memset(at(areas.staging(kFinal + 2 * kPart)), 3, kPart);
  EXPECT_FALSE(areas.follow({{kFinal, kFinal + 4 * kPart}}, {}, {}, true));
  areas.unregister();
  *at(areas.staging(kFinal + kPart)) = std::byte{2};
  EXPECT_TRUE(areas.weld({kFinal, kFinal + 4 * kPart}, own_mappings()));
  const uint64_t start = areas.staging(kFinal);
  EXPECT_EQ(split_by_mappings({start, start + 4 * kPart}, own_mappings()).size(), 1u);
  for (const auto& [offset, value] : {std::pair<uint64_t, int>{0, 1},
                                      {kPart - 1, 1},
                                      {kPart, 2},
                                      {kPart + 1, 0},
                                      {2 * kPart, 3},
                                      {3 * kPart - 1, 3},
                                      {3 * kPart, 0}})
    EXPECT_EQ(*at(start + offset), std::byte(value)) << offset;
  void* grown = ::mremap(at(start), 4 * kPart, 5 * kPart, MREMAP_MAYMOVE);
  ASSERT_NE(grown, MAP_FAILED);
  ::munmap(grown, 5 * kPart);
}

TEST(StagedAreasMapped, WhatIsLostIsLostAsAWhole) {
  constexpr uint64_t kFinal = 0x31000000000, kHalf = 1 << 20;
  StagedAreas areas(::getpid());
  EXPECT_FALSE(areas.follow({{kFinal, kFinal + 2 * kHalf}}, {}, {}, false));
  EXPECT_FALSE(areas.follow({{kFinal, kFinal + 2 * kHalf}}, {}, {}, false));  // not registered any more
  std::memset(at(areas.staging(kFinal)), 0x5a, 2 * kHalf);
  // The second half becomes another kind of mapping: the sender will take it that the first is empty too.
  EXPECT_TRUE(areas.follow({{kFinal, kFinal + kHalf}, {kFinal + kHalf, kFinal + 2 * kHalf, true}}, {}, {}, false));
  for (StagedArea a : areas.areas()) EXPECT_EQ(a.end - a.start, kHalf);
  areas.unregister();
  EXPECT_EQ(*at(areas.staging(kFinal)), std::byte{0});
  EXPECT_EQ(*at(areas.staging(kFinal + kHalf)), std::byte{0});
  EXPECT_FALSE(areas.follow({}, {}, {}, true));
}

}  // namespace
}  // namespace migrate
