#include "core/memory/track_set.h"

#include <gtest/gtest.h>

namespace migrate {
namespace {

constexpr uint64_t kPage = 4096;

TEST(PageSet, AppendJoinsWhatTouches) {
  PageSet pages(kPage, 2 * kPage);
  pages.append(2 * kPage, 3 * kPage);
  EXPECT_EQ(pages, PageSet(kPage, 3 * kPage));
}

// PAGEMAP_SCAN tells a part of the range again, in which pages were written meanwhile (track_scan.cpp).
TEST(PageSet, AppendTakesRangesOutOfOrder) {
  PageSet pages(4 * kPage, 5 * kPage);
  pages.append(8 * kPage, 9 * kPage);
  pages.append(6 * kPage, 7 * kPage);
  pages.append(0, kPage);
  PageSet wanted(0, kPage);
  for (const uint64_t at : {4, 6, 8}) wanted.append(at * kPage, (at + 1) * kPage);
  EXPECT_EQ(pages, wanted);
  EXPECT_EQ(pages.pages(), 4u);
}

}  // namespace
}  // namespace migrate
