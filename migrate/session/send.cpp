// The source agent: reads like the steps in README.md.
#include <poll.h>
#include <time.h>

#include <array>
#include <cmath>
#include <exception>
#include <thread>

#include "core/base/procfs.h"
#include "migrate/session/clocks.h"
#include "migrate/session/fault.h"
#include "migrate/session/host_facts.h"
#include "migrate/session/interrupt.h"
#include "migrate/session/inventory.h"
#include "migrate/session/session.h"
#include "migrate/session/settle.h"
#include "pageserver/page_stream.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using wire::Message;

constexpr milliseconds kHeartbeat{500};
constexpr size_t kImagePart = 256 << 10;
constexpr int kClockSamples = 12;

double ms_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

double rounded(double ms) { return std::round(ms * 100) / 100; }

std::string text_ms(double ms) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f ms", ms);
  return text;
}

Pid parse_target(const std::string& target) {
  if (!target.starts_with("pid:")) {
    throw Refusal("\"" + target + "\" names no process tree", "write pid:N, for the task N and all its descendants");
  }
  char* end = nullptr;
  const long pid = std::strtol(target.c_str() + 4, &end, 10);
  if (*end != '\0' || pid <= 0 || pid > (1 << 22)) throw Refusal("\"" + target + "\" holds no pid", "write pid:N");
  return Pid(static_cast<pid_t>(pid));
}

class SendSession {
 public:
  SendSession(const SendOptions& options, Events& events, const InterruptWatch& interrupt, Logger& log)
      : options_(options),
        events_(events),
        interrupt_(interrupt),
        log_(log),
        target_(parse_target(options.target)),
        address_(parse_host_port(options.address)),
        connector_(options.link),
        store_(options.state_dir),
        keeper_(cgroup_keeper(log)),
        hold_(store_, *keeper_, exec_guardian("guardian-source"), options.timeouts, log),
        ask_(ask_over(connector_, options.address, options.timeouts)) {}

  int run() {
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

 private:
  void look_before_touching() {
    check_supervisor(target_, options_.shell_job, options_.parent_may_notice);
    dump_.root = target_;
    dump_.shell_job = options_.shell_job;
    dump_.tcp_close = options_.tcp_close;
    dump_.timeout = options_.timeouts.freeze;
    Dump::preflight(dump_, log_);
    inventory_ = take_inventory(target_);
    label_ = options_.target + " (" + ProcDir(target_.get()).stat().comm + ")";
  }

  void connect() {
    const Deadline deadline = Deadline::in(options_.timeouts.connect);
    channel_.emplace(connector_.connect(address_, deadline, &interrupt_.stop()));
    channel_->stream().set_stop(&interrupt_.stop());
    channel_->open(deadline);
    Message hello;
    *hello.mutable_hello() = host_facts();
    const wire::Hello here = hello.hello();
    channel_->send(std::move(hello));
    const wire::Hello there = channel_->expect(Message::kHello, answer_by()).hello();
    check_hello_version(there);
    const std::vector<std::string> reasons = incompatibilities(here, there);
    if (!reasons.empty()) throw Refusal(reasons.front(), "choose a host that has it");
    events_.event("connect", "connected to " + channel_->stream().peer() + ", " + channel_->stream().description(),
                  {{"peer", channel_->stream().peer()}, {"host", there.host()}, {"kernel", there.kernel()}});
    fault_point("source-agent.connected");
  }

  void compare_clocks() {
    std::vector<ClockSample> samples;
    for (int i = 0; i < kClockSamples; ++i) {
      Message ping;
      ping.mutable_clock_ping()->set_number(static_cast<uint64_t>(i));
      ClockSample sample;
      sample.before_ns = monotonic_now_ns();
      channel_->send(std::move(ping));
      const Message pong = channel_->expect(Message::kClockPong, answer_by());
      sample.after_ns = monotonic_now_ns();
      sample.peer_ns = pong.clock_pong().monotonic_ns();
      samples.push_back(sample);
    }
    clocks_ = estimate_clocks(samples, tree_clock_offsets(target_), boottime_now_ns() - monotonic_now_ns());
    const double apart = static_cast<double>(clocks_.monotonic_ns - clocks_.at_destination_ns) / 1e9;
    events_.event("clocks", "the tree's clock is " + std::to_string(apart) + " s ahead of the destination's",
                  {{"ahead_s", apart}, {"uncertainty_us", clocks_.uncertainty_ns / 1000}});
  }

  void check_there() {
    std::optional<FileProbes> probes;
    if (!options_.files_shared) probes.emplace(inventory_.check);
    Message message;
    *message.mutable_check() = inventory_.check;
    channel_->send(std::move(message));
    const wire::CheckReply reply = channel_->expect(Message::kCheckReply, answer_by()).check_reply();
    for (const std::string& reason : reply.refusals()) events_.event("refused", reason);
    if (reply.refusals_size() > 0) {
      throw Refusal("the destination cannot take " + label_ + ": " + reply.refusals(0), "nothing was touched");
    }
    // Most of what was written is on the disk before the tree stops, so that the rest is little.
    sync_files(inventory_.writable_files);
    events_.event(
        "checks",
        "checked: " + std::to_string(inventory_.check.files_size()) + " files, " +
            std::to_string(inventory_.check.ports_size()) + " ports, " + std::to_string(inventory_.check.pids_size()) +
            " tasks",
        {{"files", int64_t{inventory_.check.files_size()}}, {"tasks", int64_t{inventory_.check.pids_size()}}});
    fault_point("source-agent.checked");
  }

  void begin() {
    wire::GuardianRequest::StartSource start;
    id_ = new_session_id();
    start.set_state_dir(options_.state_dir);
    start.set_session(to_hex(id_));
    start.set_peer(options_.address);
    start.set_label(label_);
    start.set_silence_ms(static_cast<uint32_t>(options_.timeouts.silence.count()));
    start.mutable_dump()->set_root(target_.get());
    start.mutable_dump()->set_shell_job(options_.shell_job);
    start.mutable_dump()->set_tcp_close(options_.tcp_close);
    start.mutable_dump()->set_timeout_ms(static_cast<uint32_t>(dump_.timeout.count()));
    hold_.start(start);
    channel_->set_session(id_, hold_.epoch());
    begun_ = true;
    Message message;
    wire::Begin* begin = message.mutable_begin();
    begin->set_label(label_);
    begin->set_streams(static_cast<uint32_t>(options_.streams));
    begin->set_shell_job(options_.shell_job);
    begin->set_tcp_close(options_.tcp_close);
    begin->set_monotonic_ns(clocks_.monotonic_ns);
    begin->set_boottime_ns(clocks_.boottime_ns);
    begin->set_at_destination_ns(clocks_.at_destination_ns);
    channel_->send(std::move(message));
    channel_->expect(Message::kBegun, answer_by());
    std::vector<std::unique_ptr<Stream>> streams;
    for (int i = 0; i < options_.streams; ++i) {
      const Deadline deadline = Deadline::in(options_.timeouts.connect);
      std::unique_ptr<Stream> stream = connector_.connect(address_, deadline, &interrupt_.stop());
      send_page_preface(*stream, {id_, static_cast<uint16_t>(i), static_cast<uint16_t>(options_.streams)}, deadline);
      streams.push_back(std::move(stream));
    }
    sender_.emplace(std::move(streams));
    events_.event("begin", "session " + to_hex(id_), {{"session", to_hex(id_)}});
    fault_point("source-agent.begun");
  }

  void freeze() {
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
    fault_point("source-agent.frozen");
  }

  void send_images() {
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

  void send_pages() {
    std::exception_ptr failure;
    StopEvent finished;
    PageTotals totals;
    std::thread worker([&] {
      try {
        sync_files(inventory_.writable_files);
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

  void await_ready() {
    const Message ready = wait_for(Message::kReady, options_.timeouts.restore);
    ready_ = Clock::now();
    events_.event("ready", "the destination holds " + std::to_string(ready.ready().tasks()) + " tasks at its gate",
                  {{"tasks", int64_t{ready.ready().tasks()}}});
    fault_point("source-agent.ready");
  }

  void commit() {
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

  void await_gate() {
    channel_->expect(Message::kGateOpen, answer_by());
    opened_ = Clock::now();
    events_.event("gate-open", label_ + " runs at the destination",
                  {{"downtime_ms", rounded(ms_between(freeze_began_, opened_))}});
    fault_point("source-agent.gate-open");
  }

  void kill_source() {
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

  void report() {
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

  Deadline answer_by() const { return Deadline::in(options_.timeouts.answer); }

  /// Waits up to `time` for the peer, telling the guardian that we live; throws if the guardian, the peer or the user
  /// ends it, or until `wake` is readable. Returns whether the peer has something to say.
  bool watch(milliseconds time, int wake = -1) {
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

  bool sending_pages() const {
    return sender_ && pages_sent_ == Clock::time_point{} && shells_ready_ != Clock::time_point{};
  }

  /// While pages flow the peer has only bad news.
  void throw_peer_news() {
    channel_->expect(Message::kReady, answer_by());
    throw Corrupt("a message of the peer", "it is ready too early");
  }

  Message wait_for(Message::BodyCase kind, milliseconds time) {
    const Deadline deadline = Deadline::in(time);
    while (!watch(kHeartbeat)) {
      if (deadline.passed())
        throw TimedOut("the destination did not answer for " + std::to_string(time.count() / 1000) + " s");
    }
    return channel_->expect(kind, answer_by());
  }

  void show_progress() {
    const uint64_t bytes = sender_->counters().bytes();
    const double seconds = std::max(1e-3, ms_between(shells_ready_, Clock::now()) / 1000);
    events_.progress(
        "progress",
        "pages " + human_bytes(bytes) + " of " + human_bytes(pages_total_ * kPageSize) + ", " +
            human_bytes(static_cast<uint64_t>(static_cast<double>(bytes) / seconds)) + "/s",
        {{"bytes", static_cast<int64_t>(bytes)}, {"total", static_cast<int64_t>(pages_total_ * kPageSize)}});
  }

  /// Before commit: the tree runs on, and the destination is told.
  int give_up(const std::exception& e) {
    const bool refused = !touched_ && dynamic_cast<const Refusal*>(&e) != nullptr;
    bool runs = true;
    try {
      runs = hold_.abort(e.what());
    } catch (const std::exception& again) {
      events_.event("in-doubt", "session " + to_hex(id_) + ": " + again.what(), {{"session", to_hex(id_)}});
      return kInDoubt;
    }
    if (!runs) return in_doubt(e.what());
    if (sender_) sender_->cancel();
    tell_peer(e.what());
    events_.event(refused ? "refused" : "failed",
                  std::string(e.what()) + (touched_ ? "; " + label_ + " runs on here" : ""), {{"touched", touched_}});
    return refused ? kRefused : kFailed;
  }

  void tell_peer(const std::string& reason) noexcept {
    try {
      if (channel_) channel_->stream().set_stop(nullptr);
      if (channel_ && !begun_) channel_->refuse(reason);
      if (!begun_) return;
      try {
        if (!channel_->peer_refused()) {
          Message message;
          message.mutable_abort()->set_reason(reason.substr(0, 1000));
          channel_->send(std::move(message));
          await_aborted();
        }
        note_peer_settled();
        return;
      } catch (const std::exception& e) {
        log_.debug("telling the peer about the abort: {}", e.what());
      }
      channel_.reset();
      sender_.reset();
      if (!tell_outcome(store_, id_, ask_, log_)) {
        events_.event("untold", "the destination could not be told; `migrate resolve` does that later",
                      {{"session", to_hex(id_)}});
      }
    } catch (const std::exception& e) {
      log_.debug("telling the peer about the abort: {}", e.what());
    }
  }

  void note_peer_settled() {
    if (auto journal = store_.take_over(id_, Role::source, false)) {
      journal->update([](JournalEntry& entry) { entry.peer_settled = true; });
    }
  }

  /// Either answer says that the destination holds nothing of the session. Earlier messages may be on their way still.
  void await_aborted() {
    const Deadline deadline = Deadline::in(options_.timeouts.settle);
    try {
      while (channel_->receive(deadline).body_case() != Message::kAborted) {
      }
    } catch (const Refusal&) {
      if (!channel_->peer_refused()) throw;
    }
  }

  /// After commit: asks the destination's journal; nothing is guessed.
  int in_doubt(const std::string& reason) {
    log_.debug("after the commit: {}", reason);
    Settled settled{Settled::Outcome::in_doubt, reason};
    try {
      channel_.reset();
      sender_.reset();
      std::optional<Journal> journal = hold_.take_over();
      if (journal) settled = settle_source(*journal, *keeper_, ask_, log_);
    } catch (const std::exception& e) {
      settled.sentence += std::string("; ") + e.what();
    }
    switch (settled.outcome) {
      case Settled::Outcome::runs_there:
        events_.event("done", settled.sentence + " (after: " + reason + ")", {{"session", to_hex(id_)}});
        return kMoved;
      case Settled::Outcome::runs_here:
        events_.event("failed", settled.sentence, {{"session", to_hex(id_)}});
        return kFailed;
      case Settled::Outcome::in_doubt:
        break;
    }
    events_.event("in-doubt", settled.sentence + "; see `migrate resolve " + to_hex(id_) + "`",
                  {{"session", to_hex(id_)}});
    return kInDoubt;
  }

  const SendOptions& options_;
  Events& events_;
  const InterruptWatch& interrupt_;
  Logger& log_;
  Pid target_;
  HostPort address_;
  Connector connector_;
  JournalStore store_;
  std::unique_ptr<TreeKeeper> keeper_;
  SourceHold hold_;
  AskDestination ask_;
  DumpOptions dump_;
  Inventory inventory_;
  std::string label_;
  SessionId id_{};
  TreeClocks clocks_;
  std::optional<ControlChannel> channel_;
  std::optional<PageSender> sender_;
  bool begun_ = false;    ///< the destination may know the session
  bool touched_ = false;  ///< the tree was stopped
  std::vector<std::byte> images_;
  std::vector<PageSource> memories_;
  uint64_t pages_total_ = 0, bytes_sent_ = 0;
  Clock::time_point freeze_began_, frozen_, shells_ready_, pages_sent_, ready_, opened_, last_heartbeat_;
};

}  // namespace

int run_send(const SendOptions& options, Logger& log) {
  PrintedEvents printed(options.report, "send");
  Events& events = printed;
  try {
    const InterruptWatch interrupt;
    SendSession session(options, events, interrupt, log);
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
