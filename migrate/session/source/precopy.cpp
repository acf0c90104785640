#include "migrate/session/source/precopy.h"

#include <algorithm>
#include <utility>

#include "core/base/procfs.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/source/calibration_file.h"
#include "migrate/session/source/cpu_load.h"
#include "migrate/session/telling/events_rounds.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/layout_wire.h"

namespace migrate {
namespace {

using Seconds = std::chrono::duration<double>;
using wire::Message;
constexpr double kShortRound = 0.05;

/// What was sent, what was written meanwhile, and who used the processors; the times are the caller's.
RoundMeasure measured(const PageTotals& sent, const DirtyTracker::Round& next, const CpuUse& cpu) {
  RoundMeasure measure;
  measure.pages_sent = sent.pages + sent.zero_pages;
  measure.content_pages = sent.pages;
  measure.bytes_sent = sent.pages * kPageSize;
  measure.dirty_pages = next.pages;
  measure.tree_cpu = cpu.tree;
  measure.idle_cpu = cpu.idle;
  measure.all_cpu = cpu.all;
  measure.stopped_private_bytes = next.untracked_private_pages * kPageSize;
  measure.stopped_shared_bytes = next.untracked_shared_pages * kPageSize;
  measure.compare_seconds = Seconds(next.last_compare).count();
  return measure;
}

}  // namespace

/// What the rounds have in common.
struct Precopy::Course {
  TreeSize size;
  Calibration calibration;
  PrecopyPolicy policy;
  CpuLoad cpu_load;
  Clock::time_point scanned;  ///< when the last scan began
};

void Precopy::while_running() {
  rounds_began_ = Clock::now();
  tracker_.emplace(DirtyTracker::Options{.root = p_.target,
                                         .timeout = p_.dump.timeout,
                                         .by_content = true,
                                         .mappings = p_.dump.mappings,
                                         .visit_hook = visit_fault_hook("source-agent")},
                   p_.log);
  const TreeSize size = size_of_tree();
  const Calibration calibration = load_calibration(p_.options.state_dir, p_.options.address);
  const FixedCost cost = calibration.apply(estimate_fixed_cost(size, p_.peer.round_trip_seconds()));
  PolicyOptions policy = p_.options.policy;
  policy.rest_follows = p_.options.mode == SendMode::hybrid;
  Course course{size, calibration, PrecopyPolicy(policy, cost), CpuLoad(p_.target), {}};
  prepare_throttle(course.policy);
  course.scanned = Clock::now();
  // What the first visits refuse is refused with the tree as it was.
  DirtyTracker::Round scan = tracker_->next_round();
  p_.questions.ask_about_securebits(tracker_->securebits());
  touched_ = true;
  fault_point("source-agent.scanned");
  for (unsigned n = 0;; ++n) {
    const Clock::time_point began = Clock::now();
    const PageTotals totals = send_round(scan, n);
    const double pass_seconds = Seconds(Clock::now() - p_.peer.pass_began()).count();
    p_.peer.tell_pages_done(totals);
    fault_point("source-agent.round-sent");
    p_.questions.check_news();
    totals_.wire_bytes += totals.wire_bytes;
    totals_.bytes += totals.pages * kPageSize;
    const Clock::time_point scanned_before = std::exchange(course.scanned, Clock::now());
    DirtyTracker::Round next = tracker_->next_round();
    last_scan_began_ = course.scanned;
    RoundMeasure measure = measured(totals, next, course.cpu_load.since_last());
    measure.round = n;
    measure.seconds = Seconds(course.scanned - began).count();
    measure.dirty_seconds = Seconds(course.scanned - scanned_before).count();
    measure.bandwidth = static_cast<double>(measure.bytes_sent) / std::max(pass_seconds, 1e-6);
    const bool go_on = decide(course, measure, totals, scan, next);
    if (n > 0) history_.add(std::move(scan.sources));
    scan = std::move(next);
    if (!go_on) break;
  }
  history_.add(std::move(scan.sources));
}

PageTotals Precopy::send_round(DirtyTracker::Round& scan, unsigned n) {
  make_room(scan, n);
  // It takes some ten milliseconds to prepare for a quick freeze: beside the last pages if they are few.
  const bool short_round = n > 0 && last_decision_.next_round < kShortRound;
  if (short_round) p_.hold.freeze_is_near();
  const PageTotals totals = p_.peer.send_pass(scan.sources, [this](const PageProgress& now) { show(now); });
  if (!short_round) p_.hold.freeze_is_near();
  return totals;
}

bool Precopy::decide(Course& course, RoundMeasure& measure, const PageTotals& totals, const DirtyTracker::Round& sent,
                     DirtyTracker::Round& next) {
  course.size.pages = next.tracked_pages;
  course.size.walked_pages = p_.dump.mappings->is_quick() ? 0 : course.size.pages;
  fixed_cost_ = estimate_fixed_cost(course.size, p_.peer.round_trip_seconds());
  course.policy.set_fixed_cost(course.calibration.apply(fixed_cost_));
  measure.stopped_bandwidth = p_.peer.stopped_bandwidth();
  measure.elapsed = Seconds(Clock::now() - rounds_began_).count();
  last_decision_ = course.policy.after_round(measure);
  const Decision& decision = last_decision_;
  tell_round(
      p_.events, measure, decision,
      {totals.zero_pages, sent.discards.size(), sent.scan_time.count(), sent.visit_time.count(), totals.wire_bytes});
  tell_decision(p_.events, decision);
  totals_.rounds = measure.round + 1;
  if (decision.action == Decision::Action::cancel) throw Error("the migration was given up: " + decision.reason);
  if (decision.action == Decision::Action::throttle) throttle(course.policy, decision);
  if (decision.action != Decision::Action::stop && decision.action != Decision::Action::postcopy) return true;
  tracker_->put_back(next);
  throttle_.reset();
  return false;
}

void Precopy::make_room(DirtyTracker::Round& round, unsigned n) {
  p_.peer.send_layout(round.layout, n);
  p_.peer.send_discards(round.discards);
  const Message ready = p_.peer.wait_for(Message::kLayoutReady, p_.options.timeouts.restore);
  // Memories that are new are cold too, and come whole in this round anyway. Others come whole in the next one: nothing
  // of them now, since the tracker takes it that the destination has nothing.
  for (const wire::MemoryName& name : ready.layout_ready().cold()) {
    const MemoryId memory = from_wire(name);
    if (!in_rounds_.contains(memory)) continue;
    tracker_->forget(memory);
    std::erase_if(round.sources, [&](const PageSource& source) { return source.memory == memory; });
  }
  in_rounds_.clear();
  for (const TreeLayout::Task& task : round.layout.tasks)
    in_rounds_.insert({MemoryId::Kind::task, static_cast<uint64_t>(task.pid)});
  for (const TreeLayout::Object& object : round.layout.objects) in_rounds_.insert({MemoryId::Kind::shmem, object.id});
}

void Precopy::show(const PageProgress& now) const {
  RoundProgress progress{.round = totals_.rounds,
                         .bytes = now.bytes,
                         .total_bytes = now.total_bytes,
                         .bandwidth = now.bandwidth,
                         .wire_bytes = now.wire_bytes};
  if (totals_.rounds > 0) {
    progress.dirty_rate = last_decision_.dirty_rate;
    progress.estimate_ms = last_decision_.now.total() * 1e3;
  }
  show_round(p_.events, progress);
}

TreeSize Precopy::size_of_tree() const {
  TreeSize size{0, 0, 0, 0};
  for (const uint32_t pid : p_.questions.inventory().check.pids()) {
    try {
      const ProcDir proc(static_cast<pid_t>(pid));
      ++size.tasks;
      size.threads += proc.threads().size();
      size.descriptors += proc.descriptors().size();
      const std::string maps = proc.read("maps");
      size.mappings += static_cast<uint64_t>(std::count(maps.begin(), maps.end(), '\n'));
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;  // it ended meanwhile
    }
  }
  return size;
}

/// Early, since it measures from then on how much CPU time the tree uses.
void Precopy::prepare_throttle(PrecopyPolicy& policy) {
  if (p_.options.policy.on_no_convergence != OnNoConvergence::throttle) return;
  try {
    throttle_ = Throttle::for_tree(p_.target, to_hex(p_.hold.id()));
  } catch (const Error& e) {
    policy.cannot_throttle(e.what());
  }
}

void Precopy::throttle(PrecopyPolicy& policy, const Decision& decision) {
  try {
    if (!throttle_) return;
    throttle_->apply(decision.cpu_share);
    tell_throttle(p_.events, decision.cpu_share, throttle_->how());
  } catch (const Error& e) {
    throttle_.reset();
    policy.cannot_throttle(e.what());
    p_.events.event("throttle", std::string("the tree cannot be slowed down: ") + e.what(), {{"cpu_share", 1.0}});
  }
}

std::vector<StopMark> Precopy::stops() const { return tracker_ ? tracker_->stops() : std::vector<StopMark>(); }

void Precopy::frozen(FrozenTree& tree) {
  for (const PageSource& memory : tree.memories) all_runs_[memory.memory] = memory.runs;
  DirtyTracker::Last last = tracker_->last_round(tree.memories);
  last_compare_ = last.compare_time;
  history_.add(std::move(last.written));
  p_.peer.send_discards(last.discards);
}

void Precopy::room_made(const wire::FillReady& ready, std::vector<PageSource>& memories) {
  for (const wire::MemoryName& name : ready.cold()) {
    const auto all = all_runs_.find(from_wire(name));
    if (all == all_runs_.end()) continue;
    const auto memory = std::ranges::find(memories, all->first, &PageSource::memory);
    if (memory != memories.end()) memory->runs = all->second;
  }
}

void Precopy::learn(const MoveTimes& times) const {
  const auto between = [](Clock::time_point a, Clock::time_point b) { return Seconds(b - a).count(); };
  FixedCost measured = fixed_cost_;
  measured.run_on = between(last_scan_began_, times.freeze_began);
  measured.freeze = between(times.freeze_began, times.frozen);
  // Comparing is estimated by itself, from what there is to compare.
  measured.images = between(times.frozen + last_compare_, times.shells_ready);
  measured.finish = between(times.pages_sent, times.ready);
  measured.handover = between(times.ready, times.opened);
  Calibration calibration = load_calibration(p_.options.state_dir, p_.options.address);
  calibration.learn(fixed_cost_, measured);
  save_calibration(p_.options.state_dir, p_.options.address, calibration);
}

}  // namespace migrate
