// Layouts of rounds: what is said is what is understood, in parts that fit into a frame, and nothing else is.
#include "migrate/session/wire/layout_wire.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr size_t kFrame = 4 << 20;

TreeLayout layout_of(size_t areas, const std::string& path) {
  TreeLayout layout;
  layout.tasks.push_back({.pid = 7, .ppid = 0, .pgid = 7, .sid = 7, .areas = {}});
  layout.tasks.push_back({.pid = 8, .ppid = 7, .pgid = 7, .sid = 7, .exit_signal = SIGUSR1, .areas = {}});
  for (size_t i = 0; i < areas; ++i) {
    const uint64_t start = 0x10000 + i * 2 * kPageSize;
    layout.tasks[i % 2].areas.push_back({.start = start,
                                         .end = start + kPageSize,
                                         .no_reserve = i % 3 == 0,
                                         .file = i % 5 == 0 ? path : "",
                                         .offset = i % 5 == 0 ? i * kPageSize : 0});
  }
  layout.objects = {{11, 5 * kPageSize, false, ""}, {12, 0, true, "a name"}};
  return layout;
}

TEST(LayoutWire, ComesBackFromParts) {
  const TreeLayout layout = layout_of(60'000, "/" + std::string(4000, 'p'));
  const std::vector<wire::Layout> parts = to_wire(layout, 3);
  EXPECT_GT(parts.size(), 12u);
  LayoutParts whole;
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_LT(parts[i].ByteSizeLong(), kFrame);
    EXPECT_EQ(whole.add(parts[i]), i + 1 == parts.size());
  }
  EXPECT_TRUE(whole.take() == layout);
}

TEST(LayoutWire, ImpossiblePathsAndNamesAreThrownOut) {
  const auto takes = [](const TreeLayout& layout) {
    LayoutParts parts;
    for (const wire::Layout& part : to_wire(layout, 0)) parts.add(part);
  };
  EXPECT_NO_THROW(takes(layout_of(1, "/lib")));
  for (const std::string& path : {std::string("lib"), "/" + std::string(5000, 'p'), std::string("/l\0b", 4)})
    EXPECT_THROW(takes(layout_of(1, path)), Corrupt);
  for (const std::string& name : {std::string(300, 'n'), std::string("n\0m", 3)}) {
    TreeLayout layout = layout_of(1, "");
    layout.objects[1].name = name;
    EXPECT_THROW(takes(layout), Corrupt);
  }
  TreeLayout layout = layout_of(1, "/lib");
  layout.tasks[0].areas[0].offset = 5;
  EXPECT_THROW(takes(layout), Corrupt);
}

TEST(LayoutWire, WhatIsThereTwiceOrOfNoKindIsThrownOut) {
  LayoutParts parts;
  for (const wire::Layout& part : to_wire(layout_of(3, "/lib"), 0)) parts.add(part);
  parts.take();
  TreeLayout twice = layout_of(1, "");
  twice.objects.push_back(twice.objects.front());
  EXPECT_THROW(parts.add(to_wire(twice, 0).front()), Corrupt);

  wire::MemoryName name;
  name.set_id(7);
  for (const uint32_t kind : {0u, 3u, 257u}) {
    name.set_kind(kind);
    EXPECT_THROW(from_wire(name), Corrupt) << kind;
  }
  name.set_kind(2);
  EXPECT_EQ(from_wire(name), (MemoryId{MemoryId::Kind::shmem, 7}));
}

TEST(LayoutWire, TooMuchTextIsThrownOut) {
  LayoutParts parts;
  const TreeLayout layout = layout_of(100'000, "/" + std::string(4000, 'p'));
  EXPECT_THROW(
      {
        for (const wire::Layout& part : to_wire(layout, 0)) parts.add(part);
      },
      Corrupt);
}

}  // namespace
}  // namespace migrate
