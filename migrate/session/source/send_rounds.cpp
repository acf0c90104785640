// Pre-copy: rounds of pages while the tree runs, until the policy says that it may be stopped.
#include "migrate/session/guardian/packet.h"
#include "migrate/session/source/calibration_file.h"
#include "migrate/session/source/cpu_load.h"
#include "migrate/session/source/inventory_privileges.h"
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/events_rounds.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/layout_wire.h"
#include "pageserver/run_beside.h"

namespace migrate {
namespace {

using Seconds = std::chrono::duration<double>;
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

void SendSession::choose_mode() {
  if (options_.mode != SendMode::precopy) return;
  const std::string why = DirtyTracker::cannot_track(target_, *dump_.mappings);
  if (why.empty()) {
    precopy_ = true;
  } else {
    events_.event("mode", "stopped while it is copied: " + why, {{"mode", std::string("stop-copy")}, {"why", why}});
  }
}

void SendSession::rounds() {
  if (!precopy_) return;
  rounds_began_ = Clock::now();
  tracker_.emplace(DirtyTracker::Options{.root = target_,
                                         .timeout = dump_.timeout,
                                         .by_content = true,
                                         .mappings = dump_.mappings,
                                         .visit_hook = visit_fault_hook("source-agent")},
                   log_);
  TreeSize size = size_of_tree();
  const Calibration calibration = load_calibration(options_.state_dir, options_.address);
  PrecopyPolicy policy(options_.policy, calibration.apply(estimate_fixed_cost(size, round_trip_seconds_)));
  CpuLoad cpu_load(target_);
  prepare_throttle(policy);
  Clock::time_point scanned = Clock::now();
  // What the first visits refuse is refused with the tree as it was.
  DirtyTracker::Round scan = tracker_->next_round();
  ask_about_visits();
  touched_ = true;
  fault_point("source-agent.scanned");
  for (unsigned n = 0;; ++n) {
    const Clock::time_point began = Clock::now();
    make_room(scan, n);
    // It takes some ten milliseconds to prepare for a quick freeze: beside the last pages if they are few.
    const bool short_round = n > 0 && last_decision_.next_round < kShortRound;
    if (short_round) hold_.freeze_is_near();
    const PageTotals totals = send_pass(scan.sources);
    if (!short_round) hold_.freeze_is_near();
    const double pass_seconds = Seconds(Clock::now() - pass_began_).count();
    tell_pages_done(totals);
    fault_point("source-agent.round-sent");
    check_news();
    rounds_wire_bytes_ += totals.wire_bytes;
    rounds_bytes_ += totals.pages * kPageSize;
    const Clock::time_point scanned_before = std::exchange(scanned, Clock::now());
    DirtyTracker::Round next = tracker_->next_round();
    last_scan_began_ = scanned;
    size.pages = next.tracked_pages;
    size.walked_pages = dump_.mappings->is_quick() ? 0 : size.pages;
    fixed_cost_ = estimate_fixed_cost(size, round_trip_seconds_);
    policy.set_fixed_cost(calibration.apply(fixed_cost_));
    RoundMeasure measure = measured(totals, next, cpu_load.since_last());
    measure.round = n;
    measure.stopped_bandwidth = stopped_bandwidth();
    measure.seconds = Seconds(scanned - began).count();
    measure.dirty_seconds = Seconds(scanned - scanned_before).count();
    measure.bandwidth = static_cast<double>(measure.bytes_sent) / std::max(pass_seconds, 1e-6);
    measure.elapsed = Seconds(Clock::now() - rounds_began_).count();
    last_decision_ = policy.after_round(measure);
    const Decision& decision = last_decision_;
    tell_round(
        events_, measure, decision,
        {totals.zero_pages, scan.discards.size(), scan.scan_time.count(), scan.visit_time.count(), totals.wire_bytes});
    tell_decision(events_, decision);
    rounds_ = n + 1;
    if (decision.action == Decision::Action::cancel) throw Error("the migration was given up: " + decision.reason);
    if (decision.action == Decision::Action::stop) {
      tracker_->put_back(next);
      throttle_.reset();  // a task out of CPU time reaches no stop
      break;
    }
    if (decision.action == Decision::Action::throttle) throttle(policy, decision);
    scan = std::move(next);
  }
}

void SendSession::make_room(DirtyTracker::Round& round, unsigned n) {
  for (wire::Layout& part : to_wire(round.layout, n)) {
    Message message;
    *message.mutable_layout() = std::move(part);
    channel_->send(std::move(message));
  }
  send_discards(round.discards);
  const Message ready = wait_for(Message::kLayoutReady, options_.timeouts.restore);
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

void SendSession::send_discards(std::span<const PageDiscard> discards) {
  for (wire::Discards& part : to_wire(discards)) {
    Message message;
    *message.mutable_discards() = std::move(part);
    channel_->send(std::move(message));
  }
}

PageTotals SendSession::send_pass(std::span<const PageSource> sources) {
  PageTotals totals;
  pages_total_ = 0;
  for (const PageSource& source : sources) pages_total_ += source.pages();
  pass_began_ = Clock::now();
  bytes_before_pass_ = sender_->counters().bytes();
  wire_before_pass_ = sender_->counters().wire_bytes;
  passing_ = true;
  std::exception_ptr failure;
  try {
    failure = run_beside([&] { totals = sender_->send(sources); },
                         [&](int wake) {
                           watch(std::chrono::milliseconds(100), wake);
                           show_progress();
                         },
                         [&] { sender_->cancel(); });
  } catch (...) {
    passing_ = false;
    throw;
  }
  passing_ = false;
  if (failure) rethrow_with_peers_reason(failure);
  tell_codecs();
  return totals;
}

/// A destination that gives up cuts the page streams, and says why on the control connection.
void SendSession::rethrow_with_peers_reason(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Disconnected&) {
    constexpr std::chrono::seconds kLastWords{1};
    try {
      channel_->receive(Deadline::in(kLastWords));
    } catch (const Refusal&) {
      throw;
    } catch (const Error& e) {
      log_.debug("the destination says nothing more: {}", e.what());
    }
    throw;
  }
}

void SendSession::tell_pages_done(const PageTotals& totals) {
  Message done;
  done.mutable_pages_done()->set_pages(totals.pages);
  channel_->send(std::move(done));
}

void SendSession::check_news() {
  Inventory news;
  const std::vector<std::string> refusals = ask_twice([&](int) -> wire::Check& {
    news = take_inventory(target_, InventoryDepth::whole, &inventory_);
    return news.check;
  });
  if (!refusals.empty()) refuse_news(refusals.front());
  extend_inventory(inventory_, news);
  // What was written meanwhile goes to the disk now, so that little is left when the tree is stopped.
  if (!synced_.valid() || synced_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
    if (synced_.valid()) synced_.get();
    synced_ = std::async(std::launch::async, [files = inventory_.writable_files] { sync_files(files); });
  }
}

/// What only visits tell, before the first page goes.
void SendSession::ask_about_visits() {
  wire::Check told;
  for (const auto& [pid, bits] : tracker_->securebits()) add_securebits(pid, bits, told);
  ask_about_securebits(told);
}

void SendSession::ask_about_stop() {
  wire::Check told;
  add_securebits(decode_images(images_), told);
  ask_about_securebits(told);
}

void SendSession::ask_about_securebits(wire::Check& told) {
  static const wire::Check kNothing;
  leave_out_privileges(kNothing, told);
  const std::vector<std::string> refusals = ask(told);
  if (!refusals.empty())
    throw Refusal("the destination cannot take " + label_ + ": " + refusals.front(), "it runs on as before");
}

void SendSession::refuse_news(const std::string& reason) const {
  throw Refusal("the destination cannot take what " + label_ + " opened meanwhile: " + reason,
                "try again when it has closed that");
}

void SendSession::ask_about(Inventory news) {
  const std::vector<std::string> refusals = ask(news.check);
  if (!refusals.empty()) refuse_news(refusals.front());
  extend_inventory(inventory_, news);
}

TreeSize SendSession::size_of_tree() const {
  TreeSize size{0, 0, 0, 0};
  for (const uint32_t pid : inventory_.check.pids()) {
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
void SendSession::prepare_throttle(PrecopyPolicy& policy) {
  if (options_.policy.on_no_convergence != OnNoConvergence::throttle) return;
  try {
    throttle_ = Throttle::for_tree(target_, to_hex(id_));
  } catch (const Error& e) {
    policy.cannot_throttle(e.what());
  }
}

void SendSession::throttle(PrecopyPolicy& policy, const Decision& decision) {
  try {
    if (!throttle_) return;
    throttle_->apply(decision.cpu_share);
    tell_throttle(events_, decision.cpu_share, throttle_->how());
  } catch (const Error& e) {
    throttle_.reset();
    policy.cannot_throttle(e.what());
    events_.event("throttle", std::string("the tree cannot be slowed down: ") + e.what(), {{"cpu_share", 1.0}});
  }
}

void SendSession::last_scan() {
  if (!tracker_) return;
  for (const PageSource& memory : memories_) all_runs_[memory.memory] = memory.runs;
  const DirtyTracker::Last last = tracker_->last_round(memories_);
  last_compare_ = last.compare_time;
  send_discards(last.discards);
}

void SendSession::add_cold(const wire::FillReady& ready) {
  for (const wire::MemoryName& name : ready.cold()) {
    const auto all = all_runs_.find(from_wire(name));
    if (all == all_runs_.end()) continue;
    const auto memory =
        std::find_if(memories_.begin(), memories_.end(), [&](const PageSource& m) { return m.memory == all->first; });
    if (memory != memories_.end()) memory->runs = all->second;
  }
}

}  // namespace migrate
