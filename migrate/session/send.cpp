// The source agent while it holds the tree: freeze, send, commit, kill.
#include <poll.h>

#include <cmath>
#include <exception>
#include <thread>

#include "migrate/session/fault.h"
#include "migrate/session/send_session.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kHeartbeat{500};
constexpr size_t kImagePart = 256 << 10;

double ms_between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
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
  } catch (const std::exception& e) {
    return in_doubt(e.what());
  }
  report();
  return kMoved;
}

void SendSession::freeze() {
  // The dump may take its time; an interrupt is honoured right after it.
  touched_ = true;
  freeze_began_ = Clock::now();
  FrozenTree frozen = hold_.freeze();
  frozen_ = Clock::now();
  images_ = std::move(frozen.images);
  memories_ = std::move(frozen.memories);
  for (const PageSource& memory : memories_) pages_total_ += memory.pages();
  events_.event(
      "freeze",
      "frozen in " + text_ms(ms_between(freeze_began_, frozen_)) + ": " + human_bytes(pages_total_ * kPageSize) +
          " in " + std::to_string(memories_.size()) + " memories",
      {{"freeze_ms", rounded(ms_between(freeze_began_, frozen_))}, {"pages", static_cast<int64_t>(pages_total_)}});
  // Beside everything else: it has to be done only before the commit.
  synced_ = std::async(std::launch::async, [this] { sync_files(inventory_.writable_files); });
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
  wait_for(Message::kFillReady, options_.timeouts.restore);
  shells_ready_ = Clock::now();
}

void SendSession::send_pages() {
  std::exception_ptr failure;
  StopEvent finished;
  PageTotals totals;
  std::thread worker([&] {
    try {
      totals = sender_->send(memories_);
    } catch (...) {
      failure = std::current_exception();
    }
    finished.trigger();
  });
  try {
    while (!finished.stopped()) {
      watch(milliseconds(100), finished.fd());
      show_progress();
    }
  } catch (...) {
    sender_->cancel();
    worker.join();
    throw;
  }
  worker.join();
  if (failure) std::rethrow_exception(failure);
  bytes_sent_ = totals.pages * kPageSize;
  Message done;
  done.mutable_pages_done()->set_pages(totals.pages);
  channel_->send(std::move(done));
  pages_sent_ = Clock::now();
  events_.event(
      "pages", human_bytes(bytes_sent_) + " sent in " + text_ms(ms_between(shells_ready_, pages_sent_)),
      {{"bytes", static_cast<int64_t>(bytes_sent_)}, {"zero_pages", static_cast<int64_t>(totals.zero_pages)}});
  fault_point("source-agent.pages-sent");
}

void SendSession::await_ready() {
  const Message ready = wait_for(Message::kReady, options_.timeouts.restore);
  synced_.get();
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
    note_peer_settled();
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
                    "), " + human_bytes(bytes_sent_) + " sent",
                {{"session", to_hex(id_)},
                 {"downtime_ms", rounded(downtime)},
                 {"freeze_ms", rounded(ms_between(freeze_began_, frozen_))},
                 {"shells_ms", rounded(ms_between(frozen_, shells_ready_))},
                 {"pages_ms", rounded(ms_between(shells_ready_, pages_sent_))},
                 {"restore_ms", rounded(ms_between(pages_sent_, ready_))},
                 {"handover_ms", rounded(ms_between(ready_, opened_))},
                 {"bytes", static_cast<int64_t>(bytes_sent_)}});
}

bool SendSession::watch(milliseconds time, int wake) {
  if (Clock::now() - last_heartbeat_ > kHeartbeat) {
    hold_.alive();
    last_heartbeat_ = Clock::now();
  }
  if (interrupt_.interrupted()) throw Cancelled(std::string("interrupted"));
  if (channel_->buffered()) return true;
  std::array<pollfd, 4> p{pollfd{channel_->fd(), POLLIN, 0}, pollfd{interrupt_.stop().fd(), POLLIN, 0},
                          pollfd{hold_.death_fd().value_or(-1), POLLIN, 0}, pollfd{wake, POLLIN, 0}};
  ::poll(p.data(), p.size(), static_cast<int>(time.count()));
  if (p[2].revents != 0) hold_.alive();
  if (p[0].revents == 0) return false;
  if (sending_pages()) throw_peer_news();
  return true;
}

bool SendSession::sending_pages() const {
  return sender_ && pages_sent_ == Clock::time_point{} && shells_ready_ != Clock::time_point{};
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
  const uint64_t bytes = sender_->counters().bytes();
  const double seconds = std::max(1e-3, ms_between(shells_ready_, Clock::now()) / 1000);
  events_.progress(
      "progress",
      "pages " + human_bytes(bytes) + " of " + human_bytes(pages_total_ * kPageSize) + ", " +
          human_bytes(static_cast<uint64_t>(static_cast<double>(bytes) / seconds)) + "/s",
      {{"bytes", static_cast<int64_t>(bytes)}, {"total", static_cast<int64_t>(pages_total_ * kPageSize)}});
}

int run_send(const SendOptions& options, Logger& log) {
  PrintedEvents printed(options.report, "send");
  Events& events = printed;
  try {
    const InterruptWatch interrupt;
    SendOptions adjusted = options;
    adjusted.timeouts = with_test_timeouts(options.timeouts);
    SendSession session(adjusted, events, interrupt, log);
    return session.run();
  } catch (const Error& e) {
    events.event("refused", e.what());
    return kRefused;
  } catch (const std::exception& e) {
    events.event("failed", e.what());
    return kFailed;
  }
}

}  // namespace migrate
