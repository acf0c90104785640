// The policy against simulated trees: it ends, it decides as it promises, and its estimates come true.
#include "migrate/policy/precopy_policy.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "simulation.h"

namespace migrate {
namespace {

using simulation::bursty;
using simulation::migrate_it;
using simulation::Outcome;
using simulation::steady;
using simulation::World;
using simulation::Writer;
using Action = Decision::Action;

constexpr double kLinkPages = 1e9 / 4096;  ///< pages a second that World's link carries

World world(Writer writer) {
  World w;
  w.writer = std::move(writer);
  return w;
}

PolicyOptions with(OnNoConvergence choice) {
  PolicyOptions o;
  o.on_no_convergence = choice;
  return o;
}

bool well_estimated(const Outcome& o) {
  const double off = std::abs(o.last.now.total() - o.downtime);
  return off <= 0.005 || off <= 0.3 * o.downtime;
}

TEST(PrecopyPolicy, AnIdleTreeIsStoppedAfterOneRound) {
  const Outcome o = migrate_it(world(steady(0, 0)), {});
  EXPECT_EQ(o.last.action, Action::stop);
  EXPECT_EQ(o.rounds, 1u);
  EXPECT_LE(o.downtime, 0.050);
  EXPECT_EQ(o.last.dirty_pages, 0u);
  EXPECT_EQ(o.last.convergence, 0);
}

TEST(PrecopyPolicy, ConstantRatesBelowTheBandwidthConverge) {
  for (const double share : {0.01, 0.04, 0.1, 0.3, 0.5, 0.7}) {
    // So large a working set that hardly any page is written twice.
    const Outcome o = migrate_it(world(steady(1e9, share * kLinkPages)), {});
    EXPECT_EQ(o.last.action, Action::stop) << share;
    EXPECT_LE(o.last.now.total(), 0.050) << share;
    EXPECT_LE(o.downtime, 0.060) << share;
    EXPECT_LE(o.rounds, 12u) << share;
    EXPECT_NEAR(o.last.convergence, share, 0.15 * share + 0.05) << share;
  }
}

TEST(PrecopyPolicy, TenThousandPagesASecondTakeAFewShortRounds) {
  const Outcome o = migrate_it(world(steady(262'144, 10'000)), {});
  EXPECT_LE(o.rounds, 4u);
  EXPECT_LE(o.downtime, 0.035);
  EXPECT_LE(o.pages_sent, 262'144 * 1.1);
}

TEST(PrecopyPolicy, BeyondTheBandwidthItStopsSoonAndSaysWhy) {
  for (const double share : {1.1, 2.0, 5.0, 50.0}) {
    const Outcome o = migrate_it(world(steady(200'000, share * kLinkPages)), {});
    EXPECT_EQ(o.last.action, Action::stop) << share;
    EXPECT_LE(o.rounds, 8u) << share;
    EXPECT_LE(o.pages_sent, 262'144 * 6.0) << share;
    EXPECT_NE(o.last.reason.find("more rounds do not make it smaller"), std::string::npos) << o.last.reason;
    EXPECT_TRUE(well_estimated(o)) << o.last.now.total() << " " << o.downtime;
  }
}

TEST(PrecopyPolicy, CancelIsCancelAndNeverAFreezeOverTheLimit) {
  for (const double rate : {2'000.0, 50'000.0, 240'000.0, 500'000.0, 5'000'000.0}) {
    const Outcome o = migrate_it(world(steady(200'000, rate)), with(OnNoConvergence::cancel));
    if (o.last.action == Action::stop) {
      EXPECT_LE(o.last.now.total(), 0.050) << rate;
    } else {
      EXPECT_EQ(o.last.action, Action::cancel) << rate;
      EXPECT_NE(o.last.reason.find("giving up"), std::string::npos);
      EXPECT_GT(rate, 100'000) << "this converges";
    }
  }
}

TEST(PrecopyPolicy, ThrottleSlowsDownInStepsUntilItFits) {
  const Outcome o = migrate_it(world(steady(262'144, 2 * kLinkPages)), with(OnNoConvergence::throttle));
  EXPECT_EQ(o.last.action, Action::stop);
  EXPECT_LT(o.last.cpu_share, 1);
  EXPECT_LE(o.downtime, 0.060);
  double share = 1;
  unsigned steps = 0;
  for (const Decision& d : o.decisions) {
    if (d.action != Action::throttle) continue;
    EXPECT_LT(d.cpu_share, share);
    share = d.cpu_share;
    ++steps;
  }
  EXPECT_GE(steps, 1u);
  EXPECT_LE(steps, 5u);
  EXPECT_LE(o.rounds, 25u);
}

TEST(PrecopyPolicy, ThrottleThatDoesNotHelpEndsInAStop) {
  // 2 GB/s of different pages against 20 MB/s: even a tenth is too much.
  World w = world(steady(262'144, 500'000));
  w.bandwidth = 20e6;
  const Outcome o = migrate_it(w, with(OnNoConvergence::throttle));
  EXPECT_EQ(o.last.action, Action::stop);
  EXPECT_DOUBLE_EQ(o.last.cpu_share, 0.1);
  EXPECT_LE(o.rounds, 30u);
}

TEST(PrecopyPolicy, WhereThrottlingIsImpossibleItStopsAndTellsSo) {
  World w = world(steady(262'144, 2 * kLinkPages));
  w.throttles = false;
  const Outcome o = migrate_it(w, with(OnNoConvergence::throttle));
  EXPECT_EQ(o.last.action, Action::stop);
  EXPECT_EQ(o.last.cpu_share, 1);
  EXPECT_NE(o.last.reason.find("no cpu controller"), std::string::npos) << o.last.reason;
}

TEST(PrecopyPolicy, AFixedCostOverTheLimitIsNotBlamedOnTheWriter) {
  World w = world(steady(10'000, 10'000));
  w.fixed = {0.1, 0.002, 0.1, 0.008, 0.012};  // 512 threads
  const Outcome stop = migrate_it(w, {});
  EXPECT_EQ(stop.last.action, Action::stop);
  EXPECT_LE(stop.rounds, 4u);
  const Outcome cancel = migrate_it(w, with(OnNoConvergence::cancel));
  EXPECT_EQ(cancel.last.action, Action::cancel);
  EXPECT_EQ(cancel.rounds, 1u);
  EXPECT_NE(cancel.last.reason.find("do not shrink"), std::string::npos) << cancel.last.reason;
  const Outcome throttle = migrate_it(w, with(OnNoConvergence::throttle));
  EXPECT_EQ(throttle.last.cpu_share, 1) << "slowing down cannot help";
}

TEST(PrecopyPolicy, AThrottleMakesTheRestSmallWhereTheFixedCostIsOverTheLimit) {
  World w = world(steady(262'144, 2 * kLinkPages));
  w.fixed = {0.1, 0.002, 0.1, 0.008, 0.012};
  const Outcome stop = migrate_it(w, {}), throttle = migrate_it(w, with(OnNoConvergence::throttle));
  EXPECT_LT(throttle.last.cpu_share, 1);
  EXPECT_LT(throttle.downtime, stop.downtime / 2);
  EXPECT_TRUE(std::ranges::any_of(throttle.decisions, [](const Decision& d) {
    return d.reason.find("slowed down") != std::string::npos && d.reason.find("do not shrink") != std::string::npos;
  }));
}

TEST(PrecopyPolicy, PostCopyTakesWhatRoundsCannot) {
  const Outcome fast = migrate_it(world(steady(200'000, 500'000)), with(OnNoConvergence::postcopy));
  EXPECT_EQ(fast.last.action, Action::postcopy);
  EXPECT_NE(fast.last.reason.find("when the program runs at the destination"), std::string::npos) << fast.last.reason;
  const Outcome slow = migrate_it(world(steady(10'000, 1'000)), with(OnNoConvergence::postcopy));
  EXPECT_EQ(slow.last.action, Action::stop) << slow.last.reason;
  // Not for what pages have no part in.
  World w = world(steady(10'000, 1));
  w.fixed = {0.1, 0.002, 0.1, 0.008, 0.012};
  EXPECT_EQ(migrate_it(w, with(OnNoConvergence::postcopy)).last.action, Action::stop);
}

TEST(PrecopyPolicy, MemoryThatCannotBeTrackedCounts) {
  World w = world(steady(1000, 1000));
  w.stopped_bytes = 100e6;
  const Outcome o = migrate_it(w, {});
  EXPECT_EQ(o.last.action, Action::stop);
  EXPECT_NEAR(o.last.now.stopped, 0.1, 0.02);
  EXPECT_TRUE(well_estimated(o));
  EXPECT_EQ(migrate_it(w, with(OnNoConvergence::cancel)).last.action, Action::cancel);
}

TEST(PrecopyPolicy, RoundsAreBoundedWhateverTheTreeDoes) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const auto log_uniform = [&](double low, double high) {
      return low * std::pow(high / low, std::uniform_real_distribution<double>()(random));
    };
    World w = world(bursty(log_uniform(1, 1e6), log_uniform(1, 1e7), log_uniform(0.01, 10), 0));
    const double period = log_uniform(0.01, 10);
    w.writer = bursty(log_uniform(1, 1e6), log_uniform(1, 1e7), period, period * 0.3);
    w.bandwidth = log_uniform(1e6, 1e10);
    w.noise = 0.3;
    w.seed = static_cast<unsigned>(i);
    PolicyOptions o;
    o.max_rounds = 1 + static_cast<unsigned>(i) % 40;
    o.on_no_convergence = static_cast<OnNoConvergence>(i % 3);
    const Outcome out = migrate_it(w, o);
    ASSERT_LE(out.rounds, o.max_rounds) << i;
    ASSERT_TRUE(out.last.action == Action::stop || out.last.action == Action::cancel) << i;
    ASSERT_FALSE(out.last.reason.empty());
    if (out.last.action == Action::cancel) {
      ASSERT_EQ(o.on_no_convergence, OnNoConvergence::cancel);
    }
    for (const auto& [name, value] : numbers_of(out.last)) ASSERT_TRUE(std::isfinite(value)) << name;
  }
}

TEST(PrecopyPolicy, TheTotalTimeIsKept) {
  for (const double limit : {2.0, 5.0, 20.0}) {
    World w = world(steady(262'144, 200'000));
    PolicyOptions o;
    o.max_total_time = limit;
    const Outcome out = migrate_it(w, o);
    EXPECT_EQ(out.last.action, Action::stop);
    EXPECT_LE(out.elapsed, limit);
    o.on_no_convergence = OnNoConvergence::cancel;
    o.max_total_time = 0.5;  // already over after round 0
    const Outcome gone = migrate_it(w, o);
    EXPECT_EQ(gone.last.action, Action::cancel);
    EXPECT_NE(gone.last.reason.find("--max-total-time"), std::string::npos) << gone.last.reason;
  }
}

TEST(PrecopyPolicy, BurstsAreWaitedOut) {
  // One tenth of the time it writes far more than the link carries, else nothing.
  unsigned met = 0;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    World w = world(bursty(100'000, 1'000'000, 1.0, 0.1));
    w.pages = 200'000 + seed * 3'777;
    w.seed = seed;
    const Outcome o = migrate_it(w, {});
    met += o.downtime <= 0.055 ? 1 : 0;
    EXPECT_LE(o.rounds, 15u);
  }
  EXPECT_GE(met, 17u);
}

TEST(PrecopyPolicy, EstimatesComeTrueInNineOfTenMoves) {
  for (const auto choice : {OnNoConvergence::stop, OnNoConvergence::throttle}) {
    unsigned good = 0, moves = 0, seed = 0;
    for (const double memory : {16'384.0, 65'536.0, 262'144.0, 1'048'576.0}) {
      for (const double rate : {0.0, 1'000.0, 10'000.0, 50'000.0, 100'000.0, 200'000.0, 300'000.0, 500'000.0}) {
        for (const double set : {0.05, 0.5, 1.0}) {
          for (const double fixed_error : {0.85, 1.0, 1.15}) {
            World w = world(steady(memory * set, rate));
            w.pages = memory;
            w.fixed_error = fixed_error;
            w.seed = ++seed;
            const Outcome o = migrate_it(w, with(choice));
            ASSERT_EQ(o.last.action, Action::stop);
            ++moves;
            good += well_estimated(o) ? 1 : 0;
          }
        }
      }
    }
    EXPECT_GE(good * 10, moves * 9) << good << " of " << moves;
    RecordProperty(choice == OnNoConvergence::stop ? "stop" : "throttle", std::to_string(good * 100 / moves));
  }
}

TEST(PrecopyPolicy, GoesOnBelowTheLimitOnlyWhereItPays) {
  PolicyOptions lax;
  lax.max_downtime = 1.0;
  const Outcome o = migrate_it(world(steady(1e9, 50'000)), lax);
  EXPECT_GE(o.rounds, 2u) << "a round of 0.2 s saves as much downtime";
  EXPECT_LE(o.rounds, 4u);
  EXPECT_LE(o.downtime, 0.1);
  const Outcome quiet = migrate_it(world(steady(100, 1000)), lax);
  EXPECT_EQ(quiet.rounds, 1u);
}

TEST(PrecopyPolicy, AStoppedTreeLeavesItsProcessorsToTheTransport) {
  const auto stopped_over_running = [](double tree, double idle, double all) {
    PrecopyPolicy policy({}, FixedCost{});
    RoundMeasure m;
    m.pages_sent = 100'000, m.bytes_sent = m.pages_sent * 4096, m.seconds = 1;
    m.dirty_pages = 50'000;
    m.tree_cpu = tree, m.idle_cpu = idle, m.all_cpu = all;
    const Decision d = policy.after_round(m);
    return d.stopped_bandwidth / d.bandwidth;
  };
  EXPECT_NEAR(stopped_over_running(0, 0, 0), 1, 1e-9) << "not known";
  EXPECT_NEAR(stopped_over_running(1, 0, 2), 2, 1e-9);
  EXPECT_NEAR(stopped_over_running(1, 2, 4), 1, 1e-9) << "there was enough for all";
  EXPECT_NEAR(stopped_over_running(1.99, 0, 2), 3, 1e-9) << "bounded";
}

TEST(PrecopyPolicy, WhatIsWrittenWhenTheThrottleIsLiftedCounts) {
  World w = world(steady(65'536, 500'000));
  w.pages = 65'536;
  w.fixed.run_on = 0.03;
  for (w.seed = 1; w.seed <= 20; ++w.seed) {
    const Outcome o = migrate_it(w, with(OnNoConvergence::throttle));
    EXPECT_LT(o.last.cpu_share, 1);
    EXPECT_GT(o.last.now.total(), 0.7 * o.downtime);
  }
}

TEST(DirtyModel, FindsAWorkingSet) {
  DirtyModel m;
  const Writer w = steady(10'000, 100'000);
  for (const double t : {1.0, 0.04, 0.03}) m.add(Writer::unique(w.writes(t), w.working_set), t);
  for (const double t : {0.02, 0.01, 0.1}) {
    const double real = Writer::unique(w.writes(t), w.working_set);
    EXPECT_NEAR(m.pages_in(t), real, 0.1 * real) << t;
  }
}

TEST(DirtyModel, AConstantRateStaysOne) {
  DirtyModel m;
  EXPECT_EQ(m.pages_in(1), 0);
  for (const double t : {1.0, 0.1, 0.01}) m.add(50'000 * t, t);
  EXPECT_NEAR(m.pages_in(0.001), 50, 5);
  EXPECT_NEAR(m.pages_in(0.1), 5'000, 500);
  EXPECT_NEAR(m.rate(), 50'000, 1);
}

TEST(LinkModel, SmallRoundsTellTheOverheadNotTheBandwidth) {
  LinkModel link;
  link.add(1e9, 1.0, 0);
  for (int i = 0; i < 20; ++i) link.add(4096, 0.003, 0);
  EXPECT_NEAR(link.bandwidth(), 1e9, 1e7);
  EXPECT_NEAR(link.overhead(), 0.003, 0.0005);
  for (int i = 0; i < 6; ++i) link.add(10e6, 0.1, 0);  // the link became slower
  EXPECT_NEAR(link.bandwidth(), 1e8, 0.3e8);
}

TEST(LinkModel, LateRoundsCountMost) {
  LinkModel link;
  link.add(1e9, 1.0, 1e9);            // long runs of pages
  link.add(16e6, 0.06, 16e6 / 0.05);  // single ones
  EXPECT_NEAR(link.bandwidth(), 16e6 / 0.05, 0.3e8);
}

TEST(FixedCost, SlopesAndCalibration) {
  const FixedCost small = estimate_fixed_cost({1, 1, 20, 10}, 0.0002);
  const FixedCost threads = estimate_fixed_cost({1, 513, 20, 10}, 0.0002);
  EXPECT_NEAR(threads.freeze - small.freeze, 0.1024, 1e-6);
  EXPECT_NEAR(threads.finish - small.finish, 0.1024, 1e-6);
  EXPECT_LT(small.total(), 0.035);
  Calibration c;
  for (int i = 0; i < 10; ++i) c.learn(small, {small.freeze * 2, small.images, small.finish / 2, small.handover});
  const FixedCost better = c.apply(small);
  EXPECT_NEAR(better.freeze, small.freeze * 2, small.freeze * 0.01);
  EXPECT_NEAR(better.finish, small.finish / 2, small.finish * 0.01);
  c.set({1e9, -1, NAN, 1}, {});
  EXPECT_LE(c.apply(small).total(), small.total() * 5);
}

TEST(FixedCost, OneOddMoveIsNotLearnedFrom) {
  const FixedCost estimated{0.01, 0.01, 0.01, 0.01, 0.01};
  const auto times = [&](double n) {
    return FixedCost{n * estimated.freeze, n * estimated.images, n * estimated.finish, n * estimated.handover,
                     n * estimated.run_on};
  };
  Calibration c;
  c.learn(estimated, times(4));  // the very first
  EXPECT_NEAR(c.apply(estimated).freeze, 0.01, 1e-9);
  for (int i = 0; i < 10; ++i) c.learn(estimated, times(1));
  for (const double odd : {4.0, 1.0, 0.3, 1.0, 5.0, 1.0}) {
    c.learn(estimated, times(odd));
    EXPECT_NEAR(c.apply(estimated).total(), estimated.total(), 1e-9) << odd;
  }
  // A host that has become slow is believed, from its second move on.
  for (int i = 0; i < 2; ++i) c.learn(estimated, times(3));
  EXPECT_NEAR(c.apply(estimated).handover, 0.02, 1e-9);
  Calibration kept;
  kept.set(c.factors(), c.newest());
  kept.learn(estimated, times(3));
  EXPECT_NEAR(kept.apply(estimated).handover, 0.025, 1e-9);
}

}  // namespace
}  // namespace migrate
