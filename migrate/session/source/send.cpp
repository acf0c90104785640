// The source agent while it holds the tree: freeze, send, commit, kill.

#include <cmath>
#include <exception>
#include <thread>
#include <utility>

#include "migrate/report/report.h"
#include "migrate/session/source/calibration_file.h"
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/events_pages.h"
#include "migrate/session/telling/events_rounds.h"
#include "migrate/session/telling/failure.h"
#include "migrate/session/telling/fault.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kHeartbeat{500};
constexpr size_t kImagePart = 256 << 10;

double ms_between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

/// steady_clock is CLOCK_MONOTONIC.
int64_t in_ns(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(t.time_since_epoch()).count();
}

double rounded(double ms) { return std::round(ms * 100) / 100; }

std::string text_ms(double ms) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f ms", ms);
  return text;
}

}  // namespace

int SendSession::run() {
  try {
    settle_local(store_, *keeper_, options_.timeouts, events_, log_);
    look_before_touching();
    connect();
    compare_clocks();
    check_there();
    begin();
    rounds();
    reserve_ahead();
    freeze();
    send_images();
    send_pages();
    await_ready();
    commit();
  } catch (const std::exception& e) {
    return hold_.committed() ? in_doubt(e.what()) : give_up(e);
  }
  try {
    await_gate();
    kill_source();
    tracker_.reset();
  } catch (const std::exception& e) {
    return in_doubt(e.what());
  }
  // It has moved, whatever becomes of what is said and remembered about it.
  try {
    fault_point("source-agent.reporting");
    report();
    learn_costs();
  } catch (const std::exception& e) {
    log_.warn("after the move: {}", e.what());
  }
  return kMoved;
}

void SendSession::freeze() {
  // The dump may take its time; an interrupt is honoured right after it.
  const bool first_stop = !std::exchange(touched_, true);
  freeze_began_ = Clock::now();
  FrozenTree frozen;
  try {
    frozen = hold_.freeze(tracker_ ? tracker_->stops() : std::vector<StopMark>());
    frozen_ = Clock::now();
    images_ = std::move(frozen.images);
    if (first_stop) ask_about_stop();
  } catch (const Refusal&) {
    undone_ = first_stop;  // nothing was sent, and nothing in the program changed
    throw;
  }
  // Until then it ran on, while the guardian looked at it.
  freeze_began_ += std::chrono::nanoseconds(std::max<int64_t>(frozen.stopping_since_ns - in_ns(freeze_began_), 0));
  memories_ = std::move(frozen.memories);
  last_scan();
  give_back_reserved();
  hold_.look_again();
  uint64_t pages = 0;
  for (const PageSource& memory : memories_) pages += memory.pages();
  events_.event("freeze",
                "frozen in " + text_ms(ms_between(freeze_began_, frozen_)) + "; " + human_bytes(pages * kPageSize) +
                    " in " + std::to_string(memories_.size()) + " memories to be sent",
                {{"freeze_ms", rounded(ms_between(freeze_began_, frozen_))}, {"pages", static_cast<int64_t>(pages)}});
  // Beside everything else: it has to be done only before the commit.
  news_ = std::async(std::launch::async, [this] {
    Inventory news = take_inventory(target_, InventoryDepth::quick, &inventory_);
    sync_files(inventory_.writable_files);
    sync_files(news.writable_files);
    return news;
  });
  fault_point("source-agent.frozen");
}

void SendSession::send_images() {
  for (size_t at = 0; at < images_.size(); at += kImagePart) {
    Message part;
    part.mutable_images_part()->set_data(images_.data() + at, std::min(kImagePart, images_.size() - at));
    channel_->send(std::move(part));
  }
  Message end;
  end.mutable_images_end()->set_bytes(images_.size());
  channel_->send(std::move(end));
  fault_point("source-agent.images-sent");
  const Message ready = wait_for(Message::kFillReady, options_.timeouts.restore);
  add_cold(ready.fill_ready());
  shells_ready_ = Clock::now();
}

void SendSession::send_pages() {
  lift_bandwidth_limit();
  const PageTotals totals = send_pass(memories_);
  bytes_sent_ = totals.pages * kPageSize;
  wire_bytes_sent_ = totals.wire_bytes;
  tell_pages_done(totals);
  pages_sent_ = Clock::now();
  events_.event("pages", human_bytes(bytes_sent_) + " sent in " + text_ms(ms_between(shells_ready_, pages_sent_)),
                {{"bytes", static_cast<int64_t>(bytes_sent_)},
                 {"wire_bytes", static_cast<int64_t>(totals.wire_bytes)},
                 {"zero_pages", static_cast<int64_t>(totals.zero_pages)}});
  fault_point("source-agent.pages-sent");
}

void SendSession::await_ready() {
  const Message ready = wait_for(Message::kReady, options_.timeouts.restore);
  if (synced_.valid()) synced_.get();
  ask_about(news_.get());
  ready_ = Clock::now();
  events_.event("ready", "the destination holds " + std::to_string(ready.ready().tasks()) + " tasks at its gate",
                {{"tasks", int64_t{ready.ready().tasks()}}});
  fault_point("source-agent.ready");
}

void SendSession::commit() {
  if (interrupt_.interrupted()) throw Cancelled(std::string("interrupted"));
  hold_.commit();
  // From here on nothing may stop us half way.
  channel_->stream().set_stop(nullptr);
  fault_point("source-agent.committed");
  Message message;
  message.mutable_commit();
  channel_->send(std::move(message));
  fault_point("source-agent.commit-sent");
}

void SendSession::await_gate() {
  channel_->expect(Message::kGateOpen, answer_by());
  opened_ = Clock::now();
  events_.event("gate-open", label_ + " runs at the destination",
                {{"downtime_ms", rounded(ms_between(freeze_began_, opened_))}});
  fault_point("source-agent.gate-open");
}

void SendSession::kill_source() {
  hold_.kill();
  fault_point("source-agent.killed");
  try {
    Message done;
    done.mutable_done();
    channel_->send(std::move(done));
    channel_->expect(Message::kDone, answer_by());
    store_.note_peer_settled(id_);
    channel_->finish();
    sender_->finish();
  } catch (const Error& e) {
    // It runs there and not here; only the destination's journal stays at GATE_OPEN.
    log_.debug("saying goodbye: {}", e.what());
  }
}

void SendSession::report() {
  const double downtime = ms_between(freeze_began_, opened_);
  events_.event("done",
                "moved " + label_ + ": downtime " + text_ms(downtime) + " (freeze " +
                    text_ms(ms_between(freeze_began_, frozen_)) + ", shells " +
                    text_ms(ms_between(frozen_, shells_ready_)) + ", pages " +
                    text_ms(ms_between(shells_ready_, pages_sent_)) + ", restore " +
                    text_ms(ms_between(pages_sent_, ready_)) + ", hand-over " + text_ms(ms_between(ready_, opened_)) +
                    "), " + human_bytes(bytes_sent_) + " sent" +
                    (rounds_ == 0 ? ""
                                  : " while it stood still, " + human_bytes(rounds_bytes_) + " in " +
                                        std::to_string(rounds_) + " rounds before"),
                {{"session", to_hex(id_)},
                 {"downtime_ms", rounded(downtime)},
                 {"freeze_ms", rounded(ms_between(freeze_began_, frozen_))},
                 {"shells_ms", rounded(ms_between(frozen_, shells_ready_))},
                 {"pages_ms", rounded(ms_between(shells_ready_, pages_sent_))},
                 {"restore_ms", rounded(ms_between(pages_sent_, ready_))},
                 {"handover_ms", rounded(ms_between(ready_, opened_))},
                 {"bytes", static_cast<int64_t>(bytes_sent_)},
                 {"rounds", int64_t{rounds_}},
                 {"rounds_bytes", static_cast<int64_t>(rounds_bytes_)},
                 {"wire_bytes", static_cast<int64_t>(wire_bytes_sent_ + rounds_wire_bytes_)}});
}

bool SendSession::watch(milliseconds time, int wake) {
  if (Clock::now() - last_heartbeat_ > kHeartbeat) {
    hold_.alive();
    last_heartbeat_ = Clock::now();
  }
  if (interrupt_.interrupted()) throw Cancelled(std::string("interrupted"));
  if (channel_->buffered()) return true;
  const int death = hold_.death_fd().value_or(-1);
  const WatchedFor peer(waiter_, channel_->fd()), guardian(waiter_, death), other(waiter_, wake);
  waiter_.watch(interrupt_.stop().fd());
  waiter_.wait(time);
  if (waiter_.ready(death)) hold_.alive();
  if (!waiter_.ready(channel_->fd())) return false;
  if (passing_) throw_peer_news();
  return true;
}

void SendSession::throw_peer_news() {
  channel_->expect(Message::kReady, answer_by());
  throw Corrupt("a message of the peer", "it is ready too early");
}

wire::Message SendSession::wait_for(Message::BodyCase kind, milliseconds time) {
  const Deadline deadline = Deadline::in(time);
  while (!watch(kHeartbeat)) {
    if (deadline.passed())
      throw TimedOut("the destination did not answer for " + std::to_string(time.count() / 1000) + " s");
  }
  return channel_->expect(kind, answer_by());
}

void SendSession::show_progress() {
  const uint64_t bytes = sender_->counters().bytes() - bytes_before_pass_;
  tell_codecs();
  const uint64_t wire = sender_->counters().wire_bytes - wire_before_pass_;
  const double seconds = std::max(1e-3, ms_between(pass_began_, Clock::now()) / 1000);
  const double bandwidth = static_cast<double>(bytes) / seconds;
  const uint64_t total = pages_total_ * kPageSize;
  if (tracker_ && freeze_began_ == Clock::time_point{}) {
    RoundProgress progress{
        .round = rounds_, .bytes = bytes, .total_bytes = total, .bandwidth = bandwidth, .wire_bytes = wire};
    if (rounds_ > 0) {
      progress.dirty_rate = last_decision_.dirty_rate;
      progress.estimate_ms = last_decision_.now.total() * 1e3;
    }
    return show_round(events_, progress);
  }
  show_pages(events_, {bytes, total, wire, bandwidth});
}

void SendSession::learn_costs() const {
  if (rounds_ == 0) return;
  FixedCost measured = fixed_cost_;
  measured.run_on = ms_between(last_scan_began_, freeze_began_) / 1e3;
  measured.freeze = ms_between(freeze_began_, frozen_) / 1e3;
  // Comparing is estimated by itself, from what there is to compare.
  measured.images = ms_between(frozen_ + last_compare_, shells_ready_) / 1e3;
  measured.finish = ms_between(pages_sent_, ready_) / 1e3;
  measured.handover = ms_between(ready_, opened_) / 1e3;
  Calibration calibration = load_calibration(options_.state_dir, options_.address);
  calibration.learn(fixed_cost_, measured);
  save_calibration(options_.state_dir, options_.address, calibration);
}

namespace {

int send_with(const SendOptions& options, Events& events, Logger& log) {
  try {
    const InterruptWatch interrupt;
    if (!options.report_file.empty()) Report().write(options.report_file);  // seen now, not when all is done
    SendOptions adjusted = options;
    adjusted.timeouts = with_test_timeouts(options.timeouts);
    SendSession session(adjusted, events, interrupt, log);
    return session.run();
  } catch (const std::exception& e) {
    return tell_failure(events, e);
  }
}

}  // namespace

int run_send(const SendOptions& options, Logger& log) {
  PrintedEvents printed(options.report, "send");
  Report report;
  ReportedEvents events(printed, report);
  const int code = send_with(options, events, log);
  if (options.report_file.empty()) return code;
  try {
    report.write(options.report_file);
  } catch (const Error& e) {
    printed.event("report", e.what(), {});  // the move's outcome stands
  }
  return code;
}

}  // namespace migrate
