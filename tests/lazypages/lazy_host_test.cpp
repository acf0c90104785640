// A lazy host whose processes are killed, one at a time, again and again.
#include "lazypages/lazy_host.h"

#include <map>
#include <numeric>
#include <random>
#include <set>

#include "tests/core/seeds.h"
#include "tests/lazypages/lazy_host_program.h"
#include "tests/lazypages/lazy_walk.h"

namespace migrate {
namespace {

using namespace lazy_testing;

/// Does everything to its memory, and is there until it may end.
LazyProgram::Body walks(uint64_t pages, uint64_t seed, int steps) {
  return [=](char* base, Talk& talk) {
    const int code = Walk(base, pages, seed, talk).run(steps, 0);
    while (!talk.enough) ::usleep(100);
    return code;
  };
}

/// What a program does is right, and nothing is left of its host.
void expect_good_end(HostedProgram& hosted) {
  Talk& talk = hosted.program().talk();
  talk.enough = true;
  EXPECT_EQ(hosted.program().ended(), 0) << talk.trouble.data() << " after " << talk.progress << " steps";
  hosted.talk().leave = true;
  EXPECT_TRUE(hosted.ends()) << hosted.talk().said.data();
  EXPECT_EQ(hosted.talk().wrong, 0);
}

bool as_at_source(const char* base, uint64_t page) {
  const auto* words = reinterpret_cast<const volatile uint64_t*>(base + page * kPageSize);
  for (uint64_t w = 0; w < 512; ++w)
    if (words[w] != (exists(page) ? word_of(page, w) : 0)) return false;
  return true;
}

// The same with and without holders.
TEST(LazyHost, MissingPagesReadAsZerosOnlyIfNobodyHoldsThem) {
  for (const bool holders : {false, true}) {
    SCOPED_TRACE(holders);
    HostedProgram hosted(20, {.daemon = {.fill = false}, .holders = holders}, [](char* base, Talk& talk) {
      if (!as_at_source(base, 0)) return 3;
      talk.progress = 1;
      while (talk.progress != 2) ::usleep(50);
      const auto* words = reinterpret_cast<const volatile uint64_t*>(base + kPageSize);
      return as_at_source(base, 1) ? 0 : words[0] == 0 ? 1 : 2;
    });
    ASSERT_TRUE(hosted.begins());
    const Deadline deadline = Deadline::in(kPatience);
    while (hosted.program().talk().progress != 1 && !deadline.passed()) ::usleep(50);
    hosted.kill_member(0);
    hosted.program().talk().progress = 2;
    if (holders) {
      expect_good_end(hosted);
    } else {
      EXPECT_EQ(WEXITSTATUS(hosted.program().ended()), 1);
      EXPECT_TRUE(hosted.ends());
    }
  }
}

/// One of the members after the other, whenever all are there; returns how many.
int kill_again_and_again(HostedProgram& hosted, uint64_t seed, int most) {
  std::mt19937_64 random(seed);
  int kills = 0;
  for (; kills < most; ++kills) {
    if (hosted.program().has_ended(static_cast<int>(random() % 10)) || !hosted.becomes_complete()) break;
    const size_t place = random() % 2 == 0 ? 0 : 1 + random() % 2;
    const pid_t was = hosted.talk().members[place];
    hosted.kill_member(place);
    const Deadline deadline = Deadline::in(kPatience);
    while (hosted.talk().members[place] == was && !deadline.passed()) ::usleep(50);
    EXPECT_NE(hosted.talk().members[place], was);
  }
  return kills;
}

TEST(LazyHost, AnyOneMayBeKilledAgainAndAgain) {
#ifdef __SANITIZE_ADDRESS__
  constexpr uint64_t kRuns = 3;  // five times as long each: whoever takes a place has all the shadow memory copied
#else
  constexpr uint64_t kRuns = 8;
#endif
  int kills = 0;
  for (uint64_t seed = 1; seed <= kRuns; ++seed) {
    SCOPED_TRACE(seed);
    HostedProgram hosted(1200,
                         {.daemon = {.fill = seed % 4 != 0, .seed = seed, .pause = std::chrono::microseconds(2000)}},
                         [&](char* base, Talk& talk) { return Walk(base, 1200, seed, talk).run(3000, 0); });
    ASSERT_TRUE(hosted.begins()) << hosted.talk().said.data();
    kills += kill_again_and_again(hosted, seed, 1000);
    expect_good_end(hosted);
    if (HasFailure()) return;
  }
  EXPECT_GT(kills, 100);
  RecordProperty("kills", kills);
}

// The first three, and all that take their places: who has a cgroup for a seat is never in that of another who lives.
TEST(LazyHost, WhoLivesHasASeatOfItsOwnAndKeepsIt) {
  HostedProgram hosted(600, {.daemon = {.pause = std::chrono::microseconds(500)}}, walks(600, 7, 1200));
  ASSERT_TRUE(hosted.begins());
  HostTalk& talk = hosted.talk();
  const std::vector<std::vector<size_t>> kills{{0}, {1}, {2}, {0}, {0}, {2, 0}, {1, 2}, {0}, {1}};
  for (const std::vector<size_t>& places : kills) {
    std::map<pid_t, unsigned> seats;
    for (size_t place = 0; place < 3; ++place) seats[talk.members[place]] = talk.seats[place];
    for (const size_t place : places) {
      seats.erase(talk.members[place]);
      hosted.kill_member(place);
    }
    ASSERT_TRUE(hosted.becomes_complete());
    std::set<unsigned> taken;
    for (size_t place = 0; place < 3; ++place) {
      taken.insert(talk.seats[place]);
      const auto before = seats.find(talk.members[place]);
      if (before != seats.end()) {
        EXPECT_EQ(talk.seats[place], before->second);
      }
    }
    EXPECT_EQ(taken, (std::set<unsigned>{0, 1, 2}));
  }
  expect_good_end(hosted);
}

TEST(LazyHost, AnyOneMayBeKilledWhileThreadsEachDoEverythingToTheirOwn) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(seed);
    HostedProgram hosted(
        1800, {.daemon = {.seed = seed, .pause = std::chrono::microseconds(2000)}}, [&](char* base, Talk& talk) {
          std::atomic<int> bad = 0;
          std::vector<std::thread> threads;
          for (uint64_t t = 0; t < 3; ++t)
            threads.emplace_back(
                [&, t] { bad += Walk(base + t * 600 * kPageSize, 600, seed * 10 + t, talk, t * 600).run(1500, 1); });
          for (std::thread& t : threads) t.join();
          return bad == 0 ? 0 : 1;
        });
    ASSERT_TRUE(hosted.begins()) << hosted.talk().said.data();
    EXPECT_GT(kill_again_and_again(hosted, seed, 1000), 5);
    expect_good_end(hosted);
    if (HasFailure()) return;
  }
}

TEST(LazyHost, AnyOneMayBeKilledWhileManyThreadsTouchWhatTheFillTouches) {
  constexpr uint64_t kPages = 4096;
  HostedProgram hosted(kPages, {.daemon = {.pause = std::chrono::microseconds(300)}}, [](char* base, Talk&) {
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 16; ++t)
      threads.emplace_back([&, t] {
        std::vector<uint64_t> order(kPages);
        std::iota(order.begin(), order.end(), 0);
        if (t % 3 == 1) std::reverse(order.begin(), order.end());
        if (t % 3 == 2) std::shuffle(order.begin(), order.end(), std::mt19937_64(t));
        for (const uint64_t page : order) wrong += as_at_source(base, page) ? 0 : 1;
      });
    for (std::thread& t : threads) t.join();
    return wrong == 0 ? 0 : 1;
  });
  ASSERT_TRUE(hosted.begins());
  EXPECT_GT(kill_again_and_again(hosted, 9, 1000), 5);
  expect_good_end(hosted);
}

TEST(LazyHost, TheOneThatServesMayBeKilledAtEveryStep) {
  for (const char* step : {"events-read", "event-logged", "event-applied", "change-logged", "space-recorded",
                           "space-ended", "log-written", "log-switched", "pages-put"}) {
    SCOPED_TRACE(step);
    HostedProgram hosted(600, {.daemon = {.pause = std::chrono::microseconds(500)}},
                         [&](char* base, Talk& talk) { return Walk(base, 600, 5, talk).run(1200, 0); });
    ASSERT_TRUE(hosted.begins());
    std::mt19937_64 random(6);
    int kills = 0;
    for (; kills < 12 && hosted.becomes_complete(); ++kills) {
      hosted.talk().passes = static_cast<int>(random() % 6);
      hosted.talk().step = step;
      const Deadline deadline = Deadline::in(kPatience);
      while (hosted.talk().step != nullptr && !hosted.program().has_ended() && !deadline.passed()) ::usleep(50);
      if (hosted.program().has_ended()) break;
    }
    EXPECT_GT(kills, 0) << "it never came to this step";
    hosted.talk().step = nullptr;
    expect_good_end(hosted);
    if (HasFailure()) return;
  }
}

// A program that discards in a loop: its log is full again and again.
TEST(LazyHost, TheOneThatServesMayBeKilledWhileALogBeginsAnew) {
  HostedProgram hosted(100, {.daemon = {.fill = false}}, [](char* base, Talk& talk) {
    for (; !talk.enough; ++talk.progress) ::madvise(base + (talk.progress % 20) * kPageSize, kPageSize, MADV_DONTNEED);
    for (uint64_t page = 0; page < 100; ++page) {
      const bool discarded = page < 20;
      if (discarded ? base[page * kPageSize] != 0 : !as_at_source(base, page)) return 1;
    }
    return 0;
  });
  ASSERT_TRUE(hosted.begins());
  for (const char* step : {"log-written", "log-switched"}) {
    ASSERT_TRUE(hosted.becomes_complete());
    hosted.talk().passes = 0;
    hosted.talk().step = step;
    const Deadline deadline = Deadline::in(kPatience);
    while (hosted.talk().step != nullptr && !deadline.passed()) ::usleep(50);
    ASSERT_EQ(hosted.talk().step, nullptr);
  }
  EXPECT_GT(hosted.program().talk().progress, 500u);
  ASSERT_TRUE(hosted.becomes_complete());
  expect_good_end(hosted);
}

// The one that takes over is killed in the middle of it, or a holder while it makes another one.
TEST(LazyHost, WhoTakesOverMayBeKilledAtEveryStep) {
  const std::pair<const char*, bool> steps[] = {
      {"claimed", true},        {"holder-cloned", true},    {"holder-over-old", true},  {"holder-in-place", true},
      {"follower-made", false}, {"over-old-daemon", false}, {"in-daemon-place", false}, {"taken-over", false}};
  for (const auto& [step, with_holders] : steps) {
    SCOPED_TRACE(step);
    HostedProgram hosted(600, {.daemon = {.pause = std::chrono::microseconds(500)}}, walks(600, 7, 1200));
    ASSERT_TRUE(hosted.begins());
    int kills = 0;
    for (const size_t place : {0, 0, 1, 2, 0}) {
      if (place > 0 && !with_holders) continue;
      ASSERT_TRUE(hosted.becomes_complete());
      hosted.talk().passes = 0;
      hosted.talk().step = step;
      hosted.kill_member(place);
      const Deadline deadline = Deadline::in(kPatience);
      while (hosted.talk().step != nullptr && !deadline.passed()) ::usleep(50);
      if (hosted.talk().step.exchange(nullptr) == nullptr) ++kills;
    }
    EXPECT_EQ(kills, with_holders ? 5 : 3);
    EXPECT_TRUE(hosted.becomes_complete());
    expect_good_end(hosted);
    if (HasFailure()) return;
  }
}

TEST(LazyHost, BothHoldersAreMadeAgainByTheOneThatServes) {
  HostedProgram hosted(600, {.daemon = {.pause = std::chrono::microseconds(500)}}, walks(600, 7, 1200));
  ASSERT_TRUE(hosted.begins());
  for (int kills = 1; kills <= 5 && hosted.becomes_complete(); ++kills) {
    for (size_t place : {1, 2}) hosted.kill_member(place);
    ASSERT_TRUE(hosted.becomes_complete());
    hosted.kill_member(0);
  }
  EXPECT_TRUE(hosted.becomes_complete());
  expect_good_end(hosted);
}

TEST(LazyHost, MemoriesAreAdoptedWholeOrNotAtAll) {
  for (const char* step : {"log-written", "space-recorded", "before-adopted"}) {
    SCOPED_TRACE(step);
    HostedProgram hosted(100, {.step = step},
                         [](char* base, Talk& talk) { return Walk(base, 100, 8, talk).run(100, 0); });
    ASSERT_TRUE(hosted.begins());
    EXPECT_EQ(hosted.talk().generations, 1);
    expect_good_end(hosted);
  }
}

// Given back while its program changes it. MIGRATE_TEST_ROUNDS=N: so often.
TEST(LazyHost, NobodyHangsWhenWhoGivesMemoryBackIsKilled) {
  const uint64_t rounds = number_from("MIGRATE_TEST_ROUNDS", 50);
  for (uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE(round);
    HostedProgram hosted(kChanged, {}, [&](char* base, Talk& talk) { return change_until_enough(base, talk, round); });
    ASSERT_TRUE(hosted.begins());
    hosted.talk().leave = true;
    ::usleep(static_cast<useconds_t>(round % 60 * 97));
    hosted.kill_member(0);
    ASSERT_TRUE(hosted.leaves()) << hosted.talk().said.data();
    const uint64_t then = hosted.program().talk().progress;
    const Deadline deadline = Deadline::in(kPatience);
    while (hosted.program().talk().progress < then + 10 && !hosted.program().has_ended() && !deadline.passed())
      ::usleep(50);
    expect_good_end(hosted);
  }
}

TEST(LazyHost, NoDescriptorOfWhoWasKilledStays) {
  HostedProgram hosted(20, {.daemon = {.fill = false}}, [](char* base, Talk& talk) {
    talk.progress = 1;
    while (talk.progress != 2) ::usleep(50);
    return Walk(base, 20, 1, talk).run(0, 0);
  });
  ASSERT_TRUE(hosted.begins());
  int first = 0;
  for (int kills = 1; kills <= 12; ++kills) {
    hosted.kill_member(0);
    const Deadline deadline = Deadline::in(kPatience);
    while (hosted.talk().generations < kills && !deadline.passed()) ::usleep(50);
    ASSERT_TRUE(hosted.becomes_complete());
    if (kills == 1) first = hosted.talk().descriptors;
    EXPECT_EQ(hosted.talk().descriptors, first);
  }
  hosted.program().talk().progress = 2;
  expect_good_end(hosted);
}

TEST(LazyHost, AFullTableHasRoomForNewMembers) {
  constexpr uint64_t kChildren = 60;
  HostedProgram hosted(20, {.daemon = {.fill = false}, .descriptors = 44}, [](char* base, Talk& talk) {
    for (uint64_t i = 0; i < kChildren; ++i) {
      if (::fork() == 0) {
        ++talk.progress;
        while (!talk.enough) ::usleep(100);
        ::_exit(0);
      }
    }
    while (::wait(nullptr) > 0) continue;
    return Walk(base, 20, 1, talk).run(0, 2);
  });
  ASSERT_TRUE(hosted.begins());
  const Deadline deadline = Deadline::in(kPatience);
  for (uint64_t before = 0; !deadline.passed(); ::usleep(20000)) {  // until no more fit
    const uint64_t now = hosted.program().talk().progress;
    if (now == before && now > 10) break;
    before = now;
  }
  EXPECT_LT(hosted.program().talk().progress, kChildren);
  for (const size_t place : {0, 1, 2, 0}) {
    hosted.kill_member(place);
    ASSERT_TRUE(hosted.becomes_complete());
  }
  hosted.program().talk().enough = true;
  EXPECT_EQ(hosted.program().ended(), 0) << hosted.program().talk().trouble.data();
  hosted.talk().leave = true;
  hosted.ends();  // one that had no room for its own, while a holder was being made, has failed
  EXPECT_LT(::waitpid(-1, nullptr, WNOHANG | __WALL), 0) << "something is left";
}

TEST(LazyHost, GuardsAreNotFilledOverByWhoTookOver) {
  constexpr int kGuardInstall = 102;
  HostedProgram hosted(40, {.daemon = {.fill = false}}, [](char* base, Talk& talk) {
    if (::madvise(base + 10 * kPageSize, 3 * kPageSize, kGuardInstall) != 0) return 0;  // before Linux 6.13
    talk.progress = 1;
    while (talk.progress != 2) ::usleep(50);
    if (!as_at_source(base, 10 - 1)) return 1;
    ::signal(SIGSEGV, [](int) { ::_exit(0); });
    return *const_cast<const volatile char*>(base + 11 * kPageSize) == 0 ? 2 : 3;
  });
  ASSERT_TRUE(hosted.begins());
  const Deadline deadline = Deadline::in(kPatience);
  while (hosted.program().talk().progress != 1 && !hosted.program().has_ended() && !deadline.passed()) ::usleep(50);
  hosted.talk().fill = true;
  hosted.kill_member(0);
  while (!hosted.talk().whole && !hosted.program().has_ended() && !deadline.passed()) ::usleep(50);
  hosted.program().talk().progress = 2;
  expect_good_end(hosted);
}

TEST(LazyHost, LostPagesArePoisonedByWhoTookOver) {
  HostedProgram hosted(20, {.daemon = {.fill = false, .serve = false}}, [](char* base, Talk& talk) {
    talk.progress = 1;
    const auto page = reinterpret_cast<const volatile char*>(base);
    return *page == 0 ? 1 : 0;
  });
  ASSERT_TRUE(hosted.begins());
  hosted.kill_member(0);
  const Deadline deadline = Deadline::in(kPatience);
  while (hosted.talk().generations < 1 && !deadline.passed()) ::usleep(50);
  hosted.talk().poison = true;
  const int status = hosted.program().ended();
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGBUS);
  EXPECT_TRUE(hosted.ends()) << hosted.talk().said.data();
}

// Not killed: it fails each time.
TEST(LazyHost, WhoAlwaysFailsIsSlowedDownAndSaysSo) {
  HostedProgram hosted(20, {.pace = std::chrono::milliseconds(300), .burst = 3, .fails = 8},
                       [](char* base, Talk& talk) { return Walk(base, 20, 1, talk).run(20, 0); });
  ASSERT_TRUE(hosted.begins());
  EXPECT_EQ(hosted.talk().generations, 8);
  EXPECT_GE(hosted.talk().told_pace, 3);
  EXPECT_EQ(hosted.program().ended(), 0) << hosted.program().talk().trouble.data();
  hosted.talk().leave = true;
  EXPECT_FALSE(hosted.ends()) << "processes that failed say so";
}

}  // namespace
}  // namespace migrate
