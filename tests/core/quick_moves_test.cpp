#include "core/freeze/quick_moves.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "forked_programs.h"

namespace migrate {
namespace {

using namespace std::chrono_literals;

TEST(QuickMovesTest, GoOnUntilTheyAreEndedAndLeaveUsWhereWeAre) {
  const std::string before = read_file_at(AT_FDCWD, "/proc/self/cgroup");
  {
    QuickMoves moves;
    moves.wait();
    EXPECT_TRUE(moves.extend(1h));
    moves.end();
    EXPECT_TRUE(eventually([&] { return !moves.extend(1h); }));
  }
  EXPECT_EQ(read_file_at(AT_FDCWD, "/proc/self/cgroup"), before);
}

TEST(QuickMovesTest, EndByThemselves) {
  QuickMoves moves(1ms);
  moves.wait();
  EXPECT_TRUE(eventually([&] { return !moves.extend(0ms); }));
}

TEST(QuickMovesTest, EndWhileTheKernelMakesThemWait) {
  const auto threads = [] {
    const auto all = std::filesystem::directory_iterator("/proc/self/task");
    return std::distance(begin(all), end(all));
  };
  const std::string before = read_file_at(AT_FDCWD, "/proc/self/cgroup");
  const auto threads_before = threads();
  for (int i = 0; i < 20; ++i) {
    QuickMoves moves;  // destroyed before its first move is through
    if (i % 2 == 0) moves.end();
  }
  // A joined thread is gone from /proc a moment later.
  EXPECT_TRUE(eventually([&] { return threads() == threads_before; }));
  EXPECT_EQ(read_file_at(AT_FDCWD, "/proc/self/cgroup"), before);
}

}  // namespace
}  // namespace migrate
