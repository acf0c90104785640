// Who runs when: threads of a fill, and those that serve faults.
#include "lazypages/feed/pace.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <latch>
#include <string>

#include "core/base/procfs.h"
#include "lazypages/feed/latencies.h"
#include "tests/lazypages/feed_testing.h"

namespace migrate::feed_testing {
namespace {

void stay_on_one_processor() {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(::sched_getcpu()), &set);
  ::sched_setaffinity(0, sizeof set, &set);
}

/// proc(5), of a thread of this process.
bool sleeps(pid_t tid) {
  const std::string stat = read_file_at(AT_FDCWD, "/proc/self/task/" + std::to_string(tid) + "/stat");
  return stat.at(stat.rfind(')') + 2) == 'S';
}

TEST(FeedPace, WhoStarvesIsAnOrdinaryThreadForAWhileAndWhoSleepsIsNot) {
  std::thread([] {
    stay_on_one_processor();
    std::atomic<bool> stop = false;
    std::latch over(1);
    {
      FillPace pace(true);
      std::atomic<pid_t> starving = 0, sleeping = 0;
      // Asleep before anybody computes, and until the end: who wakes there starves, too.
      std::thread waits([&] {
        const FillPace::Member member(pace);
        sleeping = ::gettid();
        over.wait();
      });
      // Where others compute already it starves until then, and is tried again as everybody is.
      EXPECT_TRUE(eventually(
          [&] { return sleeping != 0 && sleeps(sleeping) && ::sched_getscheduler(sleeping) == SCHED_IDLE; }));
      std::thread computing([&] {
        while (!stop) continue;
      });
      std::thread fill([&] {
        const FillPace::Member member(pace);
        starving = ::gettid();
        while (!stop) continue;
      });
      EXPECT_TRUE(eventually([&] { return starving != 0 && ::sched_getscheduler(starving) == SCHED_OTHER; }));
      EXPECT_GE(pace.raised(), 1u);
      EXPECT_EQ(::sched_getscheduler(sleeping), SCHED_IDLE);
      EXPECT_TRUE(eventually([&] { return ::sched_getscheduler(starving) == SCHED_IDLE; })) << "it is tried again";
      stop = true;
      over.count_down();
      for (std::thread* thread : {&computing, &fill, &waits}) thread->join();
    }
  }).join();
}

// The source's fill begins in the thread that serves requests.
TEST(FeedPace, WhoIsPromptMakesOrdinaryThreads) {
  int itself = 0, made = 0, afterwards = 0;
  std::thread([&] {
    const auto nice = [] { return ::getpriority(PRIO_PROCESS, 0); };  // Linux: of the thread
    {
      const Prompt prompt;
      itself = nice();
      std::thread([&] { made = nice(); }).join();
    }
    std::thread([&] { afterwards = nice(); }).join();
  }).join();
  if (itself >= 0) GTEST_SKIP() << "may not raise priorities: CAP_SYS_NICE is missing";
  EXPECT_GE(made, 0);
  EXPECT_EQ(afterwards, ::getpriority(PRIO_PROCESS, 0));
}

TEST(FeedPace, ThreadsAreAsBeforeAfterwards) {
  FillPace pace(true), none(false);
  {
    const FillPace::Member member(pace);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_IDLE);
  }
  EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
  {
    const FillPace::Member member(none);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
  }
  const int before = ::getpriority(PRIO_PROCESS, 0);
  {
    const Prompt prompt;
    EXPECT_LE(::getpriority(PRIO_PROCESS, 0), before);
  }
  EXPECT_EQ(::getpriority(PRIO_PROCESS, 0), before);
}

TEST(FeedLatencies, QuantilesAreAtMostAnEighthTooLarge) {
  Latencies l;
  EXPECT_EQ(l.quantile_us(0.5), 0u);
  for (uint64_t us = 1; us <= 10000; ++us) l.add(std::chrono::microseconds(us));
  EXPECT_EQ(l.count(), 10000u);
  EXPECT_EQ(l.max_us(), 10000u);
  EXPECT_EQ(l.sum_us(), 50005000u);
  for (const double part : {0.001, 0.1, 0.5, 0.99}) {
    const double exact = part * 10000;
    EXPECT_GE(static_cast<double>(l.quantile_us(part)), exact);
    EXPECT_LE(static_cast<double>(l.quantile_us(part)), exact * 1.125 + 1) << part;
  }
  EXPECT_EQ(l.quantile_us(1), 10000u);
  EXPECT_EQ(l.stalls_us(), 45503500u);
  l.add(std::chrono::hours(1000000));
  l.add(std::chrono::nanoseconds(-5));
  EXPECT_EQ(l.count(), 10002u);
}

}  // namespace
}  // namespace migrate::feed_testing
