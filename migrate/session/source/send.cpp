// The source agent while it holds the tree: freeze, send, commit, kill.

#include <cmath>
#include <exception>
#include <thread>
#include <utility>

#include "core/files/reset_connections.h"
#include "migrate/report/report.h"
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/events_pages.h"
#include "migrate/session/telling/failure.h"
#include "migrate/session/telling/fault.h"

namespace migrate {
namespace {

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
    peer_.connect();
    if (plan_->is_lazy() && !peer_.offers("postcopy"))
      throw Refusal("the receiver cannot take pages when the program runs there", "use another --mode");
    compare_clocks();
    questions_.check_there();
    begin();
    tell_huge_pages();
    plan_->while_running();
    freeze();
    send_images();
    send_pages();
    await_ready();
    commit();
  } catch (const std::exception& e) {
    return hold_.committed() ? in_doubt(interrupt_.reason_of(e)) : give_up(e);
  }
  try {
    await_gate();
    reset_dropped();
    plan_->after_gate();
    kill_source();
  } catch (const FeedLeft& e) {
    return leave_feed(e.what());
  } catch (const std::exception& e) {
    return in_doubt(e.what());
  }
  // It has moved, whatever becomes of what is said and remembered about it.
  try {
    fault_point("source-agent.reporting");
    report();
    plan_->learn(times_);
  } catch (const std::exception& e) {
    log_.warn("after the move: {}", e.what());
  }
  return kMoved;
}

void SendSession::freeze() {
  // The dump may take its time; an interrupt is honoured right after it.
  const bool first_stop = !touched();
  touched_ = true;
  times_.freeze_began = Clock::now();
  limit_downtime();
  try {
    tree_ = hold_.freeze(plan_->stops(), questions_.shared_devices());
    times_.frozen = Clock::now();
    if (first_stop) questions_.ask_about_stop(tree_.images);
  } catch (const Refusal&) {
    undone_ = first_stop;  // nothing was sent, and nothing in the program changed
    throw;
  }
  // Until then it ran on, while the guardian looked at it.
  times_.freeze_began +=
      std::chrono::nanoseconds(std::max<int64_t>(tree_.stopping_since_ns - in_ns(times_.freeze_began), 0));
  plan_->frozen(tree_);
  hold_.look_again();
  uint64_t pages = 0;
  for (const PageSource& memory : tree_.memories) pages += memory.pages();
  events_.event(
      "freeze",
      "frozen in " + text_ms(ms_between(times_.freeze_began, times_.frozen)) + "; " + human_bytes(pages * kPageSize) +
          " in " + std::to_string(tree_.memories.size()) + " memories to be sent",
      {{"freeze_ms", rounded(ms_between(times_.freeze_began, times_.frozen))}, {"pages", static_cast<int64_t>(pages)}});
  // Beside everything else: it has to be done only before the commit.
  questions_.begin_last_look();
  fault_point("source-agent.frozen");
}

/// Until the commit it can run on here at any time, and nobody has to wait for a link or a host that hangs.
void SendSession::limit_downtime() {
  std::chrono::milliseconds most = options_.abort_downtime;
  if (most.count() == 0) {
    const std::optional<double> expected = plan_->expected_downtime();
    if (!expected) return;
    most = std::max<std::chrono::milliseconds>(kLeastPatience,
                                               std::chrono::milliseconds(std::llround(*expected * 1e3 * kPatience)));
  }
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.0f", static_cast<double>(most.count()) / 1e3);
  interrupt_.set_limit(most, std::string("it has stood still for ") + seconds +
                                 " s, and the destination is not ready: that was too long (--abort-downtime)");
}

void SendSession::send_images() {
  for (size_t at = 0; at < tree_.images.size(); at += kImagePart) {
    Message part;
    part.mutable_images_part()->set_data(tree_.images.data() + at, std::min(kImagePart, tree_.images.size() - at));
    peer_.channel().send(std::move(part));
  }
  Message end;
  end.mutable_images_end()->set_bytes(tree_.images.size());
  peer_.channel().send(std::move(end));
  fault_point("source-agent.images-sent");
  const Message ready = peer_.wait_for(Message::kFillReady, options_.timeouts.restore);
  plan_->room_made(ready.fill_ready(), tree_.memories);
  times_.shells_ready = Clock::now();
}

void SendSession::send_pages() {
  if (plan_->visits()) peer_.lift_bandwidth_limit();
  sent_ = peer_.send_pass(tree_.memories, [this](const PageProgress& now) { show_pages(events_, now); });
  peer_.tell_pages_done(sent_);
  times_.pages_sent = Clock::now();
  events_.event(
      "pages",
      human_bytes(sent_.pages * kPageSize) + " sent in " + text_ms(ms_between(times_.shells_ready, times_.pages_sent)),
      {{"bytes", static_cast<int64_t>(sent_.pages * kPageSize)},
       {"wire_bytes", static_cast<int64_t>(sent_.wire_bytes)},
       {"zero_pages", static_cast<int64_t>(sent_.zero_pages)}});
  fault_point("source-agent.pages-sent");
}

void SendSession::await_ready() {
  const Message ready = peer_.wait_for(Message::kReady, options_.timeouts.restore);
  questions_.end_last_look();
  times_.ready = Clock::now();
  events_.event("ready", "the destination holds " + std::to_string(ready.ready().tasks()) + " tasks at its gate",
                {{"tasks", int64_t{ready.ready().tasks()}}});
  fault_point("source-agent.ready");
}

void SendSession::commit() {
  interrupt_.lift_limit();
  interrupt_.throw_if_interrupted();
  hold_.commit();
  // From here on nothing may stop us half way.
  peer_.channel().stream().set_stop(nullptr);
  fault_point("source-agent.committed");
  Message message;
  message.mutable_commit();
  peer_.channel().send(std::move(message));
  fault_point("source-agent.commit-sent");
}

void SendSession::await_gate() {
  peer_.channel().expect(Message::kGateOpen, peer_.answer_by());
  times_.opened = Clock::now();
  events_.event("gate-open", label_ + " runs at the destination",
                {{"downtime_ms", rounded(ms_between(times_.freeze_began, times_.opened))}});
  fault_point("source-agent.gate-open");
}

/// Not before it is certain that the program runs there; and not later, since peers would go on sending.
void SendSession::reset_dropped() {
  const std::optional<JournalEntry> entry = options_.tcp_close ? hold_.entry() : std::nullopt;
  if (!entry) return;
  for (const TaskId& task : entry->tasks) reset_connections(task.pid);
}

void SendSession::kill_source() {
  hold_.kill();
  fault_point("source-agent.killed");
  try {
    Message done;
    done.mutable_done();
    peer_.channel().send(std::move(done));
    peer_.channel().expect(Message::kDone, peer_.answer_by());
    store_.note_peer_settled(id_);
    peer_.channel().finish();
    peer_.sender().finish();
  } catch (const Error& e) {
    // It runs there and not here; only the destination's journal stays at GATE_OPEN.
    log_.debug("saying goodbye: {}", e.what());
  }
}

void SendSession::report() {
  const RoundTotals before = plan_->rounds();
  const double downtime = ms_between(times_.freeze_began, times_.opened);
  events_.event("done",
                "moved " + label_ + ": downtime " + text_ms(downtime) + " (freeze " +
                    text_ms(ms_between(times_.freeze_began, times_.frozen)) + ", shells " +
                    text_ms(ms_between(times_.frozen, times_.shells_ready)) + ", pages " +
                    text_ms(ms_between(times_.shells_ready, times_.pages_sent)) + ", restore " +
                    text_ms(ms_between(times_.pages_sent, times_.ready)) + ", hand-over " +
                    text_ms(ms_between(times_.ready, times_.opened)) + "), " + human_bytes(sent_.pages * kPageSize) +
                    " sent" +
                    (before.rounds == 0 ? ""
                                        : " while it stood still, " + human_bytes(before.bytes) + " in " +
                                              std::to_string(before.rounds) + " rounds before"),
                {{"session", to_hex(id_)},
                 {"downtime_ms", rounded(downtime)},
                 {"freeze_ms", rounded(ms_between(times_.freeze_began, times_.frozen))},
                 {"shells_ms", rounded(ms_between(times_.frozen, times_.shells_ready))},
                 {"pages_ms", rounded(ms_between(times_.shells_ready, times_.pages_sent))},
                 {"restore_ms", rounded(ms_between(times_.pages_sent, times_.ready))},
                 {"handover_ms", rounded(ms_between(times_.ready, times_.opened))},
                 {"bytes", static_cast<int64_t>(sent_.pages * kPageSize)},
                 {"rounds", int64_t{before.rounds}},
                 {"rounds_bytes", static_cast<int64_t>(before.bytes)},
                 {"wire_bytes", static_cast<int64_t>(sent_.wire_bytes + before.wire_bytes)}});
}

namespace {

int send_with(const SendOptions& options, Events& events, Logger& log) {
  try {
    InterruptWatch interrupt;
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
  try {
    if (!options.report_file.empty()) report.write(options.report_file);  // seen now, not when all is done
  } catch (const Error& e) {
    return tell_failure(printed, Refusal(std::string("--report: ") + e.what(), "name a file that can be written"));
  }
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
