// Slowing trees down: it takes effect, and leaves nothing behind, also when we die.
#include "core/freeze/cpu_throttle.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/freeze/throttle_ways.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::string name_of_test() { return "test-" + std::to_string(::getpid()); }

std::string cgroups_of(pid_t pid) { return read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid) + "/cgroup"); }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// A task with a child; both count as fast as they can. Ends with the test.
class Spinners {
 public:
  Spinners() {
    void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared_ = static_cast<Shared*>(memory);
    root_ = ::fork();
    if (root_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const pid_t child = ::fork();
      if (child == 0) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (child != 0) shared_->child = child;
      for (;;) ++(child == 0 ? shared_->of_child : shared_->of_root);
    }
    wait_until([this] { return shared_->of_child > 0 && shared_->of_root > 0; });
  }
  ~Spinners() {
    ::kill(child(), SIGKILL);
    ::kill(root_, SIGKILL);
    ::waitpid(root_, nullptr, 0);
    ::munmap(shared_, 4096);
  }
  Spinners(const Spinners&) = delete;
  Spinners& operator=(const Spinners&) = delete;

  Pid root() const { return Pid(root_); }
  pid_t child() const { return shared_->child; }
  /// Counts a second while it is looked at for `span`.
  double speed(milliseconds span) const {
    const double t = now();
    const auto before = shared_->of_child + shared_->of_root;
    std::this_thread::sleep_for(span);
    return static_cast<double>(shared_->of_child + shared_->of_root - before) / (now() - t);
  }
  uint64_t count() const { return shared_->of_child + shared_->of_root; }

  template <class F>
  static void wait_until(F done) {
    const Deadline deadline = Deadline::in(seconds(20));
    while (!done()) {
      if (deadline.passed()) throw std::runtime_error("it did not come about in time");
      ::usleep(1000);
    }
  }

 private:
  struct Shared {
    std::atomic<uint64_t> of_child, of_root;
    std::atomic<pid_t> child;
  };
  Shared* shared_ = nullptr;
  pid_t root_ = -1;
};

/// The way, or a skip that says why it is not there.
#define NEED_WAY(THROTTLE, SPINNERS, METHOD)                                  \
  std::unique_ptr<Throttle> THROTTLE;                                         \
  try {                                                                       \
    THROTTLE = Throttle::for_tree((SPINNERS).root(), name_of_test(), METHOD); \
  } catch (const Refusal& e) {                                                \
    GTEST_SKIP() << e.what();                                                 \
  }

class CpuThrottle : public ::testing::TestWithParam<Throttle::Method> {};

TEST_P(CpuThrottle, SlowsDownAndLeavesNothing) {
  const Spinners tree;
  const std::string before = cgroups_of(tree.root().get()), before_child = cgroups_of(tree.child());
  NEED_WAY(throttle, tree, GetParam());
  EXPECT_EQ(cgroups_of(tree.root().get()), before) << "looking touches nothing";
  // Others use this machine too: a comparison that a change of their load spoilt is made again.
  bool shown = false;
  for (int attempt = 0; attempt < 8 && !shown; ++attempt) {
    const double full = tree.speed(milliseconds(400));
    throttle->apply(0.2);
    const double slow = tree.speed(milliseconds(500));
    throttle->apply(0.6);
    const double middle = tree.speed(milliseconds(500));
    throttle->lift();
    shown = slow > 0.01 * full && slow < 0.4 * full && middle > slow && middle < 0.95 * full;
  }
  EXPECT_TRUE(shown) << throttle->how();
  throttle->apply(0.3);
  throttle->lift();
  EXPECT_EQ(cgroups_of(tree.root().get()), before);
  EXPECT_EQ(cgroups_of(tree.child()), before_child);
  const uint64_t count = tree.count();
  Spinners::wait_until([&] { return tree.count() > count + 1000; });
  throttle->lift();  // once more does nothing
  throttle->apply(0.5);
  throttle.reset();
  EXPECT_EQ(cgroups_of(tree.root().get()), before) << "destroying lifts";
}

TEST_P(CpuThrottle, OurDeathLifts) {
  const Spinners tree;
  const std::string before = cgroups_of(tree.root().get());
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t owner = ::fork();
  if (owner == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    char said = 'n';
    try {
      // Forked from the test: its tree is not ours to find by descent, but by pid it is.
      const auto throttle = Throttle::for_tree(tree.root(), name_of_test() + "-death", GetParam());
      throttle->apply(0.1);
      said = 'y';
      (void)!::write(ready[1], &said, 1);
      ::pause();
    } catch (const Error&) {
      (void)!::write(ready[1], &said, 1);
    }
    ::_exit(0);
  }
  ::close(ready[1]);
  char said = 0;
  ASSERT_EQ(::read(ready[0], &said, 1), 1);
  if (said == 'y') {
    EXPECT_NE(cgroups_of(tree.root().get()), before);
    ::kill(owner, SIGKILL);
  }
  ::waitpid(owner, nullptr, 0);
  if (said == 'n') {
    ::close(ready[0]);
    GTEST_SKIP() << "there is no such way here";
  }
  Spinners::wait_until([&] { return cgroups_of(tree.root().get()) == before && cgroups_of(tree.child()) == before; });
  const uint64_t count = tree.count();
  Spinners::wait_until([&] { return tree.count() > count + 1000; });
  // The keeper held no descriptor of ours: the pipe's other end is closed.
  pollfd end{ready[0], POLLIN, 0};
  ASSERT_EQ(::poll(&end, 1, 5000), 1);
  EXPECT_EQ(::read(ready[0], &said, 1), 0);
  ::close(ready[0]);
}

TEST_P(CpuThrottle, WhatAKilledOneLeftIsLifted) {
  const Spinners tree;
  const std::string before = cgroups_of(tree.root().get());
  NEED_WAY(probe, tree, GetParam());
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t owner = ::fork();
  if (owner == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto throttle = Throttle::for_tree(tree.root(), name_of_test() + "-left", GetParam());
    throttle->apply(0.1);
    // Our only child is the keeper; both are killed together.
    const std::vector<pid_t> children = ProcDir(::getpid()).children();
    if (children.size() == 1) ::kill(children[0], SIGSTOP);
    const pid_t keeper = children.size() == 1 ? children[0] : -1;
    (void)!::write(ready[1], &keeper, sizeof keeper);
    ::pause();
    ::_exit(0);
  }
  pid_t keeper = -1;
  ASSERT_EQ(::read(ready[0], &keeper, sizeof keeper), static_cast<ssize_t>(sizeof keeper));
  ASSERT_GT(keeper, 0);
  ::kill(owner, SIGKILL);
  ::kill(keeper, SIGKILL);
  ::waitpid(owner, nullptr, 0);
  Spinners::wait_until([&] { return ::kill(keeper, 0) != 0 || ProcDir(keeper).stat().state == 'Z'; });
  EXPECT_NE(cgroups_of(tree.root().get()), before);
  Throttle::lift_left_over(tree.root(), "another");
  EXPECT_NE(cgroups_of(tree.root().get()), before);
  Throttle::lift_left_over(tree.root(), "test-" + std::to_string(owner) + "-left");
  EXPECT_EQ(cgroups_of(tree.root().get()), before);
  EXPECT_EQ(cgroups_of(tree.child()), before);
  const uint64_t count = tree.count();
  Spinners::wait_until([&] { return tree.count() > count + 1000; });
  Throttle::lift_left_over(tree.root());  // nothing to do
  ::close(ready[0]);
  ::close(ready[1]);
}

INSTANTIATE_TEST_SUITE_P(Ways, CpuThrottle, ::testing::Values(Throttle::Method::v1, Throttle::Method::pauses),
                         [](const auto& way) { return way.param == Throttle::Method::v1 ? "v1" : "pauses"; });

TEST(CpuThrottleV2, WritesAndRestoresCpuMax) {
  // No v2 hierarchy with a cpu controller is at hand everywhere: the same files in an ordinary folder.
  const Spinners tree;
  char folder[] = "/tmp/migrate-throttle-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string path = folder;
  const auto put = [&](const std::string& file, const std::string& text) { std::ofstream(path + "/" + file) << text; };
  const auto get = [&] { return read_file_at(AT_FDCWD, path + "/cpu.max"); };
  const std::string both = std::to_string(tree.root().get()) + "\n" + std::to_string(tree.child()) + "\n";
  put("cgroup.procs", both);
  EXPECT_THROW(throttle_v2_in(tree.root(), path), Refusal) << "no cpu.max";
  put("cpu.max", "max 100000\n");
  {
    const auto throttle = throttle_v2_in(tree.root(), path);
    EXPECT_EQ(get(), "max 100000\n");
    throttle->apply(0.2);
    unsigned long quota = 0, period = 0;
    ASSERT_EQ(std::sscanf(get().c_str(), "%lu %lu", &quota, &period), 2);
    EXPECT_GE(quota, 1000u);
    EXPECT_LE(double(quota) / double(period), 0.2 * std::thread::hardware_concurrency() + 0.01);
    put("cpu.max", "");  // an ordinary file is longer than what is written over it
    throttle->lift();
    EXPECT_EQ(get(), "max 100000");
    throttle->apply(0.1);
    put("cpu.max", "");
  }
  EXPECT_EQ(get(), "max 100000") << "destroying lifts";
  put("cgroup.procs", both + std::to_string(::getpid()) + "\n");
  EXPECT_THROW(throttle_v2_in(tree.root(), path), Refusal) << "a stranger in it";
  std::filesystem::remove_all(path);
}

TEST(CpuThrottleQuota, PeriodsAreShortAndQuotasNotTooSmall) {
  EXPECT_EQ(cpu_quota(1).period, 10'000u);
  EXPECT_EQ(cpu_quota(1).quota, 10'000u);
  EXPECT_EQ(cpu_quota(0.05).period, 20'000u);
  EXPECT_EQ(cpu_quota(0.05).quota, 1000u);
  EXPECT_EQ(cpu_quota(0).quota, 1000u);
  EXPECT_EQ(cpu_quota(0).period, 1'000'000u);
}

TEST(CpuThrottleNames, AreChecked) {
  EXPECT_THROW(Throttle::for_tree(Pid(::getpid()), "../x"), Error);
  EXPECT_THROW(Throttle::for_tree(Pid(::getpid()), ""), Error);
}

}  // namespace
}  // namespace migrate
