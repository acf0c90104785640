// A migration in numbers: a tree that writes, a link, and a policy that decides; no time passes.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "migrate/policy/precopy_policy.h"

namespace migrate::simulation {

/// Writes random pages of a working set; `writes` says how many writes were made until a time (seconds).
struct Writer {
  double working_set = 0;  ///< pages
  std::function<double(double)> writes;
  /// Different pages among `count` random writes into `set` pages.
  static double unique(double count, double set) { return set <= 0 ? 0 : -set * std::expm1(-count / set); }
};

inline Writer steady(double working_set, double writes_per_second) {
  return {working_set, [writes_per_second](double t) { return writes_per_second * t; }};
}

/// Writes only for `busy` of each `period` seconds.
inline Writer bursty(double working_set, double writes_per_second, double period, double busy) {
  return {working_set, [=](double t) {
            const double whole = std::floor(t / period);
            return writes_per_second * (whole * busy + std::min(t - whole * period, busy));
          }};
}

struct World {
  double pages = 262'144;  ///< memory of the tree
  Writer writer;
  double bandwidth = 1e9;  ///< bytes/s
  double overhead = 0.001;
  double noise = 0.05;                                 ///< relative deviation of every measured duration
  FixedCost fixed{0.006, 0.002, 0.008, 0.008, 0.002};  ///< as it is; the policy is told `fixed_told`
  double fixed_error = 1;                              ///< told over real
  double stopped_bytes = 0;
  bool throttles = true;
  unsigned seed = 1;
};

struct Outcome {
  Decision last;
  std::vector<Decision> decisions;
  unsigned rounds = 0;
  double pages_sent = 0;
  double elapsed = 0;   ///< until the freeze, seconds
  double downtime = 0;  ///< as it came out; 0 if cancelled
  double cpu_share = 1;
};

class Simulation {
 public:
  Simulation(const World& world, const PolicyOptions& options)
      : world_(world), policy_(options, told(world)), random_(world.seed) {}

  Outcome run(unsigned give_up = 1000) {
    double to_send = world_.pages;
    for (unsigned round = 0; round < give_up; ++round) {
      const double began = now_;
      const double dirtying_since = writing_;
      const double seconds = (world_.overhead + to_send * 4096 / world_.bandwidth) * noisy();
      pass(seconds);
      const double dirty = unique_since(dirtying_since);
      outcome_.pages_sent += to_send;
      ++outcome_.rounds;
      RoundMeasure m;
      m.round = round;
      m.pages_sent = count(to_send);
      m.bytes_sent = count(to_send) * 4096;
      m.seconds = now_ - began;
      m.dirty_pages = count(dirty);
      m.stopped_shared_bytes = count(world_.stopped_bytes);
      m.elapsed = now_;
      const Decision d = policy_.after_round(m);
      outcome_.decisions.push_back(d);
      outcome_.last = d;
      if (d.action == Decision::Action::cancel) break;
      if (d.action == Decision::Action::stop || d.action == Decision::Action::postcopy) {
        freeze(dirtying_since);
        break;
      }
      if (d.action == Decision::Action::throttle) {
        if (world_.throttles) {
          share_ = d.cpu_share;
        } else {
          policy_.cannot_throttle("no cpu controller");
        }
      }
      to_send = dirty;
    }
    outcome_.elapsed = now_;
    outcome_.cpu_share = share_;
    return outcome_;
  }

 private:
  static FixedCost told(const World& w) {
    FixedCost f = w.fixed;
    f.freeze *= w.fixed_error, f.images *= w.fixed_error, f.finish *= w.fixed_error, f.handover *= w.fixed_error;
    return f;
  }
  static uint64_t count(double pages) { return static_cast<uint64_t>(std::llround(pages)); }
  double noisy() { return std::max(0.5, 1 + world_.noise * std::normal_distribution<double>()(random_)); }
  /// A throttled tree lives more slowly: its own time runs at its share.
  void pass(double seconds) {
    now_ += seconds;
    writing_ += seconds * share_;
  }
  double unique_since(double since) const {
    return Writer::unique(world_.writer.writes(writing_) - world_.writer.writes(since), world_.writer.working_set);
  }
  void freeze(double dirtying_since) {
    share_ = 1;
    pass(world_.fixed.run_on);
    const double pages = unique_since(dirtying_since);
    outcome_.downtime =
        (world_.fixed.total() + world_.overhead + (pages * 4096 + world_.stopped_bytes) / world_.bandwidth) * noisy();
    outcome_.pages_sent += pages;
  }

  World world_;
  PrecopyPolicy policy_;
  std::mt19937 random_;
  Outcome outcome_;
  double now_ = 0, writing_ = 0, share_ = 1;
};

inline Outcome migrate_it(const World& world, const PolicyOptions& options) { return Simulation(world, options).run(); }

}  // namespace migrate::simulation
