#include "migrate/policy/precopy_policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace migrate {
namespace {

constexpr std::array<double, 5> kThrottleSteps{0.8, 0.6, 0.4, 0.2, 0.1};
constexpr double kLeastGain = 0.10;      ///< of the estimate; less is no improvement
constexpr unsigned kStagnantRounds = 3;  ///< so many without improvement: not converging; one less if none is in sight
constexpr double kPolishGain = 0.25, kPolishSeconds = 0.002, kPolishRound = 1.0;
constexpr unsigned kPolishRounds = 3;
constexpr double kSteady = 1.5;  ///< writers above that are not trusted to keep within the limit for another round
constexpr unsigned kWaitRounds = 3;
constexpr uint64_t kEnoughPages = 32;  ///< to learn the size of a page on the wire from
constexpr double kLeastPageBytes = 16, kMostPageBytes = 4200;

constexpr double kIdleIsPlenty = 0.15;  ///< share of the CPU time that nobody used: the transport was not short of it
constexpr double kMostFreed = 3;
constexpr double kLastPass = 0.001;  ///< seconds that the last pages take however few they are

std::string text(const char* format, double value) {
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

std::string ms(double seconds) { return text("%.1f ms", seconds * 1e3); }
/// Where source, tree and all else fill the processors, a stopped tree leaves its part to the transport.
double freed_by_stopping(const RoundMeasure& m) {
  const double others = m.all_cpu - m.idle_cpu - m.tree_cpu;
  if (m.all_cpu <= 0 || others <= 0) return 1;
  const double scarce = std::clamp(1 - m.idle_cpu / m.all_cpu / kIdleIsPlenty, 0.0, 1.0);
  return std::min(1 + scarce * m.tree_cpu / others, kMostFreed);
}

std::string percent(double share) { return text("%.0f %%", share * 100); }

std::string describe(const DowntimeEstimate& e, uint64_t pages) {
  std::string s =
      ms(e.total()) + " (fixed " + ms(e.fixed) + ", " + std::to_string(pages) + " written pages " + ms(e.dirty);
  if (e.stopped > 0) s += ", memory that cannot be tracked " + ms(e.stopped);
  return s + ")";
}

}  // namespace

const char* name_of(Decision::Action action) {
  switch (action) {
    case Decision::Action::go_on:
      return "go-on";
    case Decision::Action::stop:
      return "stop";
    case Decision::Action::throttle:
      return "throttle";
    case Decision::Action::cancel:
      return "cancel";
    case Decision::Action::postcopy:
      return "postcopy";
  }
  return "?";
}

std::vector<std::pair<std::string, double>> numbers_of(const Decision& d) {
  return {{"estimate_ms", d.now.total() * 1e3},
          {"fixed_ms", d.now.fixed * 1e3},
          {"dirty_ms", d.now.dirty * 1e3},
          {"stopped_ms", d.now.stopped * 1e3},
          {"next_estimate_ms", d.next.total() * 1e3},
          {"next_round_ms", d.next_round * 1e3},
          {"dirty_pages", static_cast<double>(d.dirty_pages)},
          {"dirty_rate", d.dirty_rate},
          {"bandwidth", d.bandwidth},
          {"stopped_bandwidth", d.stopped_bandwidth},
          {"convergence", d.convergence},
          {"cpu_share", d.cpu_share},
          {"limit_ms", d.limit * 1e3}};
}

void PrecopyPolicy::cannot_throttle(const std::string& why) {
  no_throttle_ = why.empty() ? "it is not possible here" : why;
  cpu_share_ = share_before_;
}

void PrecopyPolicy::learn(const RoundMeasure& m) {
  link_.add(static_cast<double>(m.bytes_sent), m.seconds, m.bandwidth);
  const uint64_t content = m.content_pages != 0 ? m.content_pages : m.pages_sent;
  if (content >= kEnoughPages && m.bytes_sent > 0) {
    bytes_per_page_ =
        std::clamp(static_cast<double>(m.bytes_sent) / static_cast<double>(content), kLeastPageBytes, kMostPageBytes);
  }
  stopped_bandwidth_ = m.stopped_bandwidth;
  freed_ = freed_by_stopping(m);
  last_interval_ = m.dirty_seconds > 0 ? m.dirty_seconds : m.seconds;
  dirty_.add(static_cast<double>(m.dirty_pages), last_interval_);
}

/// Pages to send if the freeze begins `seconds` after the last scan that is not sent yet. The tree goes on writing
/// until its last thread stands; a page written before and then again is sent once, which the curve knows. The throttle
/// is lifted for the freeze, so that little time counts at full speed.
double PrecopyPolicy::pages_after(double seconds) const {
  if (cpu_share_ >= 1) return dirty_.pages_in(seconds + fixed_.run_on);
  return dirty_.pages_in(seconds) + free_pages();
}

/// Pages that are written from the lifting of the throttle on until all stands. Rounds before the throttle may have
/// been too long to tell: all that the tree ever writes was written in each. What it writes in the rounds since, at its
/// share, is then the better guide.
double PrecopyPolicy::free_pages() const {
  const double before = free_.pages_in(fixed_.run_on);
  return dirty_.empty() ? before : std::min(before, dirty_.mean_rate() / cpu_share_ * fixed_.run_on);
}

DowntimeEstimate PrecopyPolicy::estimate(double pages, const RoundMeasure& m) const {
  const auto stopped = static_cast<double>(m.stopped_private_bytes) + static_cast<double>(m.stopped_shared_bytes);
  return {fixed_.total() + kLastPass, pages * bytes_per_page_ / stopped_bandwidth(),
          stopped / stopped_bandwidth() + m.compare_seconds};
}

Decision PrecopyPolicy::after_round(const RoundMeasure& m) {
  learn(m);
  Decision d;
  d.cpu_share = cpu_share_;
  d.limit = options_.max_downtime;
  const double pages = pages_after(last_interval_);
  d.now = estimate(pages, m);
  d.dirty_pages = static_cast<uint64_t>(std::llround(pages));
  d.dirty_rate = dirty_.rate();
  d.bandwidth = link_.bandwidth();
  d.stopped_bandwidth = stopped_bandwidth();
  d.convergence = d.dirty_rate * bytes_per_page_ / d.bandwidth;
  d.next_round = link_.seconds_for(static_cast<double>(m.dirty_pages) * bytes_per_page_);
  d.next = estimate(pages_after(d.next_round), m);
  const Bounds reached = bounds(m, d);
  if (d.now.total() <= options_.max_downtime) {
    decide_within(d, reached);
  } else {
    decide_above(d, reached);
  }
  return d;
}

/// Which limits are reached, and keeps count of rounds that brought nothing.
PrecopyPolicy::Bounds PrecopyPolicy::bounds(const RoundMeasure& m, const Decision& d) {
  const double now = d.now.total(), next = d.next.total();
  const bool improved = best_ < 0 || now <= best_ * (1 - kLeastGain);
  stagnant_ = improved ? 0 : stagnant_ + 1;
  best_ = best_ < 0 ? now : std::min(best_, now);
  const bool gain_in_sight = next <= now * (1 - kLeastGain);
  Bounds reached;
  reached.rounds = m.round + 1 >= options_.max_rounds;
  reached.time = options_.max_total_time > 0 && m.elapsed + d.next_round + d.next.total() > options_.max_total_time;
  // If even no written page at all would hardly change the estimate, there is nothing left to win.
  reached.no_gain = stagnant_ >= kStagnantRounds || (stagnant_ + 1 >= kStagnantRounds && !gain_in_sight) ||
                    d.now.dirty < now * kLeastGain;
  return reached;
}

bool PrecopyPolicy::worth_another(const Decision& d) const {
  const double gain = d.now.total() - d.next.total();
  return polished_ < kPolishRounds && gain >= kPolishSeconds && gain >= kPolishGain * d.now.total() &&
         d.next_round <= kPolishRound && dirty_.unsteadiness() < kSteady;
}

void PrecopyPolicy::decide_within(Decision& d, const Bounds& reached) {
  const std::string limit = "the limit of " + ms(options_.max_downtime);
  if (!reached.any() && worth_another(d)) {
    ++polished_;
    d.action = Decision::Action::go_on;
    d.reason = "estimated downtime " + describe(d.now, d.dirty_pages) + " is within " + limit +
               ", and one more round of " + ms(d.next_round) + " brings it to " + ms(d.next.total());
    return;
  }
  d.action = Decision::Action::stop;
  d.reason = "estimated downtime " + describe(d.now, d.dirty_pages) + " is within " + limit;
}

void PrecopyPolicy::decide_above(Decision& d, const Bounds& reached) {
  const double floor = d.now.fixed + d.now.stopped;
  const bool hopeless = floor > options_.max_downtime;
  const std::string head = "estimated downtime " + describe(d.now, d.dirty_pages) + " is over the limit of " +
                           ms(options_.max_downtime) + ": ";
  if (hopeless && options_.on_no_convergence == OnNoConvergence::cancel) {
    d.action = Decision::Action::cancel;
    d.reason = head + "giving up, since " + ms(floor) + " of it do not shrink with more rounds";
    return;
  }
  if (!reached.any()) {
    d.action = Decision::Action::go_on;
    d.reason = head + "another round of " + ms(d.next_round) + " may bring it to " + ms(d.next.total());
    return;
  }
  d.reason = head;
  not_converging(d, reached, floor);
}

/// What the estimate comes to after many more rounds if the tree wrote `slowed` times as fast as now.
double PrecopyPolicy::settled_estimate(double slowed, const DowntimeEstimate& now) const {
  double round = last_interval_;
  for (int i = 0; i < 50; ++i) round = link_.seconds_for(dirty_.pages_in(round * slowed) * bytes_per_page_);
  const double pages =
      dirty_.pages_in(round * slowed) + (cpu_share_ < 1 ? free_pages() : dirty_.pages_in(fixed_.run_on));
  return now.fixed + now.stopped + pages * bytes_per_page_ / stopped_bandwidth();
}

/// What a throttle can bring the estimate to at best: the limit, or hardly more than what no throttle makes smaller.
double PrecopyPolicy::throttle_goal(const DowntimeEstimate& now) const {
  const double floor = now.fixed + now.stopped;
  return floor <= options_.max_downtime ? options_.max_downtime : floor * (1 + kLeastGain);
}

/// The first step that should do, but each at most once; the next one if none should.
void PrecopyPolicy::next_throttle_step(const DowntimeEstimate& now) {
  size_t step = throttle_step_;
  const auto does = [&](size_t i) {
    return settled_estimate(kThrottleSteps[i] / cpu_share_, now) <= throttle_goal(now);
  };
  while (step < kThrottleSteps.size() && !does(step)) ++step;
  if (step == kThrottleSteps.size()) step = throttle_step_;
  throttle_step_ = step + 1;
  if (cpu_share_ >= 1) free_ = dirty_;
  share_before_ = cpu_share_;
  cpu_share_ = kThrottleSteps[step];
  best_ = -1;
  stagnant_ = waited_ = 0;
  dirty_.clear();
}

/// Which bound ends the rounds, as part of a sentence.
std::string PrecopyPolicy::why(const Bounds& reached, double floor) const {
  if (reached.rounds) return "--max-rounds " + std::to_string(options_.max_rounds) + " is reached";
  if (reached.time)
    return "another round would not end within --max-total-time " + text("%.1f s", options_.max_total_time);
  if (floor > options_.max_downtime) return ms(floor) + " of it do not shrink with more rounds";
  return "more rounds do not make it smaller";
}

void PrecopyPolicy::not_converging(Decision& d, const Bounds& reached, double floor) {
  const std::string because = why(reached, floor);
  if (options_.on_no_convergence == OnNoConvergence::cancel) {
    d.action = Decision::Action::cancel;
    d.reason += "giving up, since " + because;
    return;
  }
  if (options_.on_no_convergence == OnNoConvergence::throttle && no_throttle_.empty() && !reached.rounds &&
      !reached.time && d.now.total() > throttle_goal(d.now) && throttle_step_ < kThrottleSteps.size()) {
    next_throttle_step(d.now);
    d.action = Decision::Action::throttle;
    d.cpu_share = cpu_share_;
    d.reason += "the program is slowed down to " + percent(cpu_share_) + " of its CPU time" +
                (floor > options_.max_downtime ? " for the sake of the rest, although " : ", since ") + because;
    return;
  }
  // A writer in bursts: a moment ago it was better, and may soon be again.
  if (!reached.rounds && !reached.time && d.now.total() > best_ * (1 + kLeastGain) && waited_ < kWaitRounds) {
    ++waited_;
    d.action = Decision::Action::go_on;
    d.reason += "waiting for a quieter moment, since it was " + ms(best_) + " before";
    return;
  }
  // Only for the sake of pages: what does not shrink is the same then.
  if (options_.on_no_convergence == OnNoConvergence::postcopy && d.now.dirty > kLeastGain * d.now.total()) {
    d.action = Decision::Action::postcopy;
    d.reason += "what is left comes when the program runs at the destination, since " + because;
    return;
  }
  d.action = Decision::Action::stop;
  d.reason +=
      options_.rest_follows ? "what is left follows, since " + because : "stopping all the same, since " + because;
  if (options_.on_no_convergence == OnNoConvergence::throttle && !no_throttle_.empty()) {
    d.reason += " and the program cannot be slowed down: " + no_throttle_;
  }
}

}  // namespace migrate
