// Noticing that a gate is open: a folder with the files of a v2 cgroup stands in for one.
#include "core/restore/gate_watch.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>

namespace migrate {
namespace {

class GateWatchTest : public testing::Test {
 protected:
  GateWatchTest() {
    char name[] = "/tmp/gate-watch-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    say("populated 1\nfrozen 1\n", "1\n");
  }
  ~GateWatchTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  void say(const char* events, const char* freeze) const {
    std::ofstream(folder_ + "/cgroup.freeze") << freeze;
    std::ofstream(folder_ + "/cgroup.events") << events;
  }
  static bool still_waits(std::future<GateWatch::Outcome>& outcome) {
    return outcome.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout;
  }

  std::string folder_;
};

TEST_F(GateWatchTest, IsOpenOnlyIfItWasAskedTo) {
  GateWatch watch({.v2 = true, .folders = {folder_}});
  auto outcome = std::async(std::launch::async, [&] { return watch.wait(); });
  EXPECT_TRUE(still_waits(outcome));
  say("populated 1\nfrozen 0\n", "1\n");  // a task that is not frozen yet
  EXPECT_TRUE(still_waits(outcome));
  say("populated 1\nfrozen 0\n", "0\n");
  const auto status = outcome.wait_for(std::chrono::seconds(20));
  say("populated 0\\nfrozen 0\\n", "0\\n");  // ends it in any case
  ASSERT_EQ(status, std::future_status::ready);
  EXPECT_EQ(outcome.get(), GateWatch::Outcome::open);
}

TEST_F(GateWatchTest, IsEmptyWhenNobodyIsLeft) {
  GateWatch watch({.v2 = true, .folders = {folder_}});
  say("populated 0\nfrozen 1\n", "1\n");
  EXPECT_EQ(watch.wait(), GateWatch::Outcome::empty);
  std::filesystem::remove_all(folder_);
  EXPECT_EQ(watch.wait(), GateWatch::Outcome::empty);
}

TEST_F(GateWatchTest, HasNoFolderOpen) {
  GateWatch watch({.v2 = true, .folders = {folder_}});
  for (Fd* file : watch.files()) {
    struct stat st {};
    ASSERT_EQ(::fstat(file->get(), &st), 0);
    EXPECT_TRUE(S_ISREG(st.st_mode));
  }
}

}  // namespace
}  // namespace migrate
