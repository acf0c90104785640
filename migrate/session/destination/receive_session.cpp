#include "migrate/session/destination/receive_session.h"

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <exception>
#include <set>

#include "migrate/session/base/session.h"
#include "migrate/session/destination/accept_streams.h"
#include "migrate/session/destination/copy_guardian.h"
#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/destination/feed_intake.h"
#include "migrate/session/destination/page_intake.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/clocks.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/link_words.h"
#include "migrate/session/wire/missing_wire.h"
#include "pageserver/page_stream.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::GuardianReply;
using wire::GuardianRequest;
using wire::Message;

constexpr uint64_t kImagesLimit = uint64_t{1} << 30;
constexpr size_t kMostTold = 200;  ///< reasons why a tree is not taken; the source learns all

class ReceiveSession {
 public:
  ReceiveSession(const ReceiveContext& context, ControlChannel& channel)
      : c_(context), options_(context.options), channel_(channel) {}

  int run(Message first) {
    try {
      const Message begin = answer_questions(std::move(first));
      if (begin.body_case() != Message::kBegin) return kRefused;
      start(begin);
      accept_streams(begin.begin());
      if (begin.begin().precopy()) receive_rounds();
      throw_if_interrupted();
      receive_images();
      throw_if_interrupted();
      prepare();
      throw_if_interrupted();
      receive_pages();
      throw_if_interrupted();
      finish();
      throw_if_interrupted();
      channel_.stream().set_stop(nullptr);
    } catch (const std::exception& e) {
      return give_up(e);
    }
    // From PREPARED on, failures leave the session to the source's word.
    try {
      say_ready();
      return await_decision();
    } catch (const std::exception& e) {
      return in_doubt(e);
    }
  }

 private:
  /// Until READY is said, SIGINT and SIGTERM end the session; the copy is discarded.
  void throw_if_interrupted() const {
    if (c_.interrupt.interrupted()) throw Cancelled(std::string("interrupted"));
  }

  Deadline answer_by() const { return Deadline::in(options_.timeouts.answer); }

  /// Clock questions and checks, until the source begins; anything else ends the conversation.
  Message answer_questions(Message message) {
    for (int i = 0; i < 1000; ++i) {
      if (message.body_case() == Message::kBegin) {
        if (!checked_) throw Corrupt("a message of the peer", "it begins before the checks");
        return message;
      }
      bool refused = false;
      if (message.body_case() == Message::kClockPing) {
        Message pong;
        pong.mutable_clock_pong()->set_number(message.clock_ping().number());
        pong.mutable_clock_pong()->set_monotonic_ns(monotonic_now_ns());
        channel_.send(std::move(pong));
      } else if (message.body_case() == Message::kCheck) {
        checked_ = answer_check(message.check());
        refused = !checked_;
      } else {
        throw Corrupt("a message of the peer", "it is out of turn");
      }
      try {
        message = channel_.receive(answer_by());
      } catch (const Error&) {
        if (refused)
          return message;  // the source ends it here, unless it looks again: the tree may have closed something
        throw;
      }
    }
    throw Corrupt("the peer", "it asks without end");
  }

  bool answer_check(const wire::Check& check) {
    Message reply;
    reply.mutable_check_reply();
    const std::string what = check.pids_size() > 0 ? "pid:" + std::to_string(check.pids(0)) : "what is sent";
    for (const std::string& reason : what_is_in_the_way(check, options_)) {
      reply.mutable_check_reply()->add_refusals(reason);
      // The source asks twice before it believes a refusal.
      if (told_.size() < kMostTold && told_.insert(reason).second)
        c_.events.event("refused", "cannot take " + what + " from " + channel_.stream().peer() + ": " + reason);
    }
    const bool good = reply.check_reply().refusals_size() == 0;
    channel_.send(std::move(reply));
    return good;
  }

  void start(const Message& message) {
    id_ = session_of(message);
    peer_epoch_ = message.epoch();
    label_ = message.begin().label();
    std::replace_if(
        label_.begin(), label_.end(), [](unsigned char ch) { return ch < 32 || ch == 127; }, '?');
    channel_.set_session(id_, peer_epoch_);
    guardian_.emplace(c_.spawn);
    GuardianRequest request;
    GuardianRequest::StartDestination* s = request.mutable_start_destination();
    s->set_state_dir(options_.state_dir);
    s->set_session(to_hex(id_));
    s->set_peer(channel_.stream().peer());
    s->set_peer_name(channel_.stream().peer_name());
    s->set_label(label_);
    s->set_root(options_.root);
    const IdentityPolicy policy = identity_policy(options_);
    for (const uint32_t uid : policy.allow_uids) s->add_allow_uids(uid);
    s->set_any_gid(!policy.allow_gids);
    if (policy.allow_gids)
      for (const uint32_t gid : *policy.allow_gids) s->add_allow_gids(gid);
    s->set_deny_capabilities(policy.deny_capabilities);
    s->set_shell_job(message.begin().shell_job());
    s->set_tcp_close(message.begin().tcp_close());
    s->set_monotonic_ns(message.begin().monotonic_ns());
    s->set_boottime_ns(message.begin().boottime_ns());
    s->set_at_local_monotonic_ns(message.begin().at_destination_ns());
    s->set_peer_epoch(peer_epoch_);
    s->set_max_tasks(options_.max_tasks);
    lazy_ = message.begin().lazy();
    s->set_lazy(lazy_);
    if (lazy_)
      for (const std::string& word : words_of(options_.link)) s->add_link(word);
    s->set_timeout_ms(static_cast<uint32_t>(options_.timeouts.restore.count()));
    try {
      guardian_->ask(request, answer_by(), &c_.interrupt.stop());
    } catch (const Refusal&) {
      not_ours_ = true;  // it took back what it had made; a journal of that id is another session's
      throw;
    }
    watch_.emplace(options_.state_dir, id_, Role::destination, guardian_->death_fd());
    const std::vector<StreamToken> tokens = make_stream_tokens(message.begin().streams());
    c_.daemon.expect_streams(tokens);
    Message begun;
    begun.mutable_begun();
    for (const StreamToken& token : tokens) begun.mutable_begun()->add_stream_tokens(token.data(), token.size());
    channel_.send(std::move(begun));
    c_.events.event("begin", "receiving " + label_ + " from " + channel_.stream().peer(),
                    {{"session", to_hex(id_)}, {"label", label_}});
    fault_point("destination-agent.begun");
  }

  void accept_streams(const wire::Begin& begin) {
    const CodecSet codecs = options_.packed_pages ? codecs_from_wire(begin.page_codecs()) : CodecSet{};
    const uint64_t max_memory = options_.max_memory != 0 ? options_.max_memory : memory_available();
    intake_.emplace(accept_page_streams(c_, channel_, id_, begin.streams()), ReceiveLimits{.codecs = codecs});
    copy_.emplace(*guardian_, *intake_, c_.interrupt.stop(), options_.timeouts, label_, max_memory);
  }

  /// Until the images come: layouts, discards and passes of pages, and what the tree opened meanwhile.
  void receive_rounds() {
    for (;;) {
      throw_if_interrupted();
      Message message = channel_.receive(Deadline::in(options_.timeouts.restore));
      switch (message.body_case()) {
        case Message::kLayout:
          if (parts_.add(message.layout())) make_room_for_round();
          break;
        case Message::kDiscards:
          copy_->discard(message.discards());
          if (message.discards().last() && room_made_) {
            room_made_ = false;
            receive_pass();
            fault_point("destination-agent.round-received");
          }
          break;
        case Message::kReserve:
          room_made_ = false;  // no pages come for that layout while the tree runs
          reserve(message.reserve());
          break;
        case Message::kCheck:
          answer_check(message.check());
          break;
        case Message::kFeed:
          let_feed_in(message);
          break;
        default:
          next_ = std::move(message);
          return;
      }
    }
  }

  void make_room_for_round() {
    fault_point("destination-agent.layout-received");
    Message ready;
    for (const MemoryId memory : copy_->make_room(parts_.take()))
      to_wire(memory, *ready.mutable_layout_ready()->add_cold());
    ready.mutable_layout_ready();
    channel_.send(std::move(ready));
    room_made_ = true;
  }

  void reserve(const wire::Reserve& wanted) {
    copy_->reserve(wanted);
    Message reserved;
    reserved.mutable_reserved();
    channel_.send(std::move(reserved));
    fault_point("destination-agent.reserved");
  }

  Message next_message(const Deadline& deadline) {
    if (!next_) return channel_.receive(deadline);
    Message message = std::move(*next_);
    next_.reset();
    return message;
  }

  void receive_images() {
    images_.reset(check(::memfd_create("migrate-images", MFD_CLOEXEC), "make", "a memory file"));
    uint64_t bytes = 0;
    for (;;) {
      const Message message = next_message(Deadline::in(options_.timeouts.freeze + options_.timeouts.answer));
      if (message.body_case() == Message::kAbort) throw Error("the source gave up: " + message.abort().reason());
      if (message.body_case() == Message::kDiscards) {
        copy_->discard(message.discards());
        continue;
      }
      if (message.body_case() == Message::kFeed) {
        let_feed_in(message);
        continue;
      }
      if (message.body_case() == Message::kMissing) {
        note_missing(message.missing());
        continue;
      }
      if (message.body_case() == Message::kImagesEnd) {
        if (message.images_end().bytes() != bytes) throw Corrupt("the images from the peer", "some are missing");
        break;
      }
      if (message.body_case() != Message::kImagesPart) throw Corrupt("a message of the peer", "it is out of turn");
      const std::string& data = message.images_part().data();
      bytes += data.size();
      if (bytes > kImagesLimit) throw Corrupt("the images from the peer", "they are too large");
      write_full(images_.get(), as_bytes_of(data), "the images");
    }
    c_.events.event("restore-may-begin", "images are here: " + human_bytes(bytes),
                    {{"bytes", static_cast<int64_t>(bytes)}});
    signal_status(options_.status_fd);
    fault_point("destination-agent.images-received");
  }

  void let_feed_in(const Message& message) {
    if (!lazy_) throw Corrupt("a message of the peer", "it is out of turn");
    migrate::let_feed_in(c_, channel_, id_, message.feed());
  }

  void note_missing(const wire::Discards& part) {
    constexpr int kMostMissing = 4'000'000;
    if (!lazy_ || missing_.runs_size() + part.runs_size() > kMostMissing)
      throw Corrupt("a message of the peer", "it is out of turn");
    from_wire(part);
    missing_.MergeFrom(part);
  }

  void prepare() {
    Message ready;
    for (const MemoryId memory : copy_->prepare(images_)) to_wire(memory, *ready.mutable_fill_ready()->add_cold());
    ready.mutable_fill_ready();
    images_.reset();
    channel_.send(std::move(ready));
    fault_point("destination-agent.prepared-shells");
  }

  void receive_pages() {
    const PageTotals totals = receive_pass();
    c_.events.event("pages", human_bytes(totals.pages * kPageSize) + " received",
                    {{"bytes", static_cast<int64_t>(totals.pages * kPageSize)},
                     {"wire_bytes", static_cast<int64_t>(totals.wire_bytes)}});
    fault_point("destination-agent.pages-received");
  }

  PageTotals receive_pass() {
    std::optional<Message> said;
    const PageTotals totals = intake_->receive([&](int wake) {
      watch(milliseconds(50), wake);
      copy_->check_memory();
      if (!said && peer_speaks()) said = channel_.receive(answer_by());
      if (said && said->body_case() == Message::kAbort) throw Error("the source gave up: " + said->abort().reason());
      c_.events.progress("progress", "pages " + human_bytes(intake_->counters().bytes()) + " received",
                         {{"bytes", static_cast<int64_t>(intake_->counters().bytes())}});
    });
    const Message done = said ? *said : channel_.expect(Message::kPagesDone, answer_by());
    if (done.body_case() != Message::kPagesDone || done.pages_done().pages() != totals.pages) {
      throw Corrupt("the pages from the peer", "not as many came as were sent");
    }
    return totals;
  }

  void finish() {
    intake_->forget_targets();
    GuardianRequest request;
    request.set_finish(true);
    finishing_ = true;
    if (lazy_) {
      uint64_t pages = 0;
      for (const wire::Discards::Run& run : missing_.runs())
        pages += run.pages();  // each below 2^35, 4 million of them
      copy_->check_memory_with(pages > UINT64_MAX / kPageSize ? UINT64_MAX : pages * kPageSize);
    }
    guardian_->send(request);
    if (lazy_) guardian_->socket().send_blob(missing_);
    const GuardianReply reply = guardian_->await(Deadline::in(options_.timeouts.restore), &c_.interrupt.stop());
    tasks_ = reply.prepared();
    fault_point("destination-agent.prepared");
  }

  void say_ready() {
    Message ready;
    ready.mutable_ready()->set_tasks(tasks_);
    channel_.send(std::move(ready));
    signal_status(options_.status_fd);
    c_.events.event("ready", label_ + " is complete behind its gate: " + std::to_string(tasks_) + " tasks",
                    {{"tasks", int64_t{tasks_}}, {"session", to_hex(id_)}});
    fault_point("destination-agent.ready-sent");
  }

  int await_decision() {
    Message decision = channel_.receive(Deadline::in(options_.timeouts.restore));
    while (decision.body_case() == Message::kCheck) {  // what it opened just before it was stopped
      answer_check(decision.check());
      decision = channel_.receive(Deadline::in(options_.timeouts.restore));
    }
    if (decision.epoch() < peer_epoch_) throw StaleEpoch(std::string("the source's decision is of an older epoch"));
    if (decision.body_case() == Message::kAbort) {
      c_.sessions.discard(id_, decision.epoch(), kPeer, decision.abort().reason());
      return aborted(decision.abort().reason());
    }
    if (decision.body_case() != Message::kCommit) throw Corrupt("a message of the peer", "it is out of turn");
    fault_point("destination-agent.commit-received");
    const uint32_t root = open_gate(decision.epoch());
    Message open;
    open.mutable_gate_open()->set_root(root);
    channel_.send(std::move(open));
    c_.events.event("gate-open", label_ + " runs here, as pid " + std::to_string(root),
                    {{"pid", int64_t{root}}, {"session", to_hex(id_)}});
    fault_point("destination-agent.gate-open");
    if (lazy_) await_whole();
    return await_done();
  }

  /// Through our guardian, or, should that have died, by its journal.
  uint32_t open_gate(uint64_t epoch) {
    try {
      GuardianRequest request;
      request.set_open(epoch);
      return guardian_->ask(request, answer_by()).opened();
    } catch (const GuardianGone& e) {
      c_.log.debug("{}", e.what());
      guardian_.reset();
    }
    const std::optional<JournalEntry> entry = c_.sessions.open(id_, epoch, kPeer);
    if (!entry || (entry->state != State::gate_open && entry->state != State::done)) {
      throw Error("the copy of " + label_ + " died with its guardian before the gate opened; it never ran");
    }
    return entry->tasks.empty() ? 0 : static_cast<uint32_t>(entry->tasks.front().pid);
  }

  /// The tree runs here and waits for pages; the source may come again if this conversation ends.
  void await_whole() {
    try {
      ask_whole();
    } catch (const GuardianGone& e) {
      c_.log.debug("{}", e.what());
      guardian_.reset();
      await_whole_by_journal(c_, channel_, id_);  // what the guardian would have written there, whoever looks writes
    }
    fault_point("destination-agent.whole");
    Message whole;
    whole.mutable_whole();
    channel_.send(std::move(whole));
    c_.events.event("whole", label_ + " has all its memory here", {{"session", to_hex(id_)}});
  }

  void ask_whole() {
    if (!guardian_) throw GuardianGone("the guardian is gone");
    GuardianRequest request;
    request.set_whole(true);
    guardian_->send(request);
    for (;;) {
      std::array<pollfd, 3> p{pollfd{guardian_->socket().fd(), POLLIN, 0}, pollfd{guardian_->death_fd(), POLLIN, 0},
                              pollfd{channel_.fd(), POLLIN | POLLRDHUP, 0}};
      ::poll(p.data(), p.size(), -1);
      if (p[0].revents != 0 || p[1].revents != 0) break;
      if (p[2].revents != 0) throw Disconnected(std::string("the source is gone; it may come again"));
    }
    guardian_->await(answer_by());
  }

  /// The tree runs here whatever happens to this conversation.
  int await_done() {
    try {
      channel_.expect(Message::kDone, Deadline::in(options_.timeouts.restore));
      GuardianRequest request;
      request.set_done(true);
      bool told = false;
      if (guardian_) {
        try {
          guardian_->ask(request, answer_by());
          guardian_->leave(answer_by());
          guardian_.reset();
          told = true;
        } catch (const GuardianGone&) {
          guardian_.reset();
        }
      }
      if (!told) c_.sessions.finish(id_, peer_epoch_);
      Message done;
      done.mutable_done();
      channel_.send(std::move(done));
      channel_.finish();
    } catch (const std::exception& e) {
      c_.log.debug("the source's goodbye: {}", e.what());
    }
    c_.events.event("done", "received " + label_, {{"session", to_hex(id_)}});
    return kMoved;
  }

  bool peer_speaks() const {
    pollfd p{channel_.fd(), POLLIN, 0};
    return channel_.buffered() || ::poll(&p, 1, 0) > 0;
  }

  /// Waits up to `time`, or until `wake` is readable; throws if the user or the guardian's death ends it.
  void watch(milliseconds time, int wake) {
    throw_if_interrupted();
    std::array<pollfd, 2> p{pollfd{guardian_->death_fd(), POLLIN, 0}, pollfd{wake, POLLIN, 0}};
    ::poll(p.data(), p.size(), static_cast<int>(time.count()));
    guardian_->check_alive();
  }

  int aborted(const std::string& reason) {
    Message reply;
    reply.mutable_aborted();
    try {
      channel_.send(std::move(reply));
      channel_.finish();
    } catch (const std::exception&) {
      // The source asks again if it needs to know.
    }
    c_.events.event("failed", "the copy of " + label_ + " was discarded: " + reason, {{"session", to_hex(id_)}});
    return kFailed;
  }

  /// Before ready was said nobody counts on us, so the copy goes.
  int give_up(const std::exception& e) {
    const bool refusal = dynamic_cast<const Refusal*>(&e) != nullptr && !guardian_;
    channel_.stream().set_stop(nullptr);
    if (guardian_) {
      const Deadline deadline = Deadline::in(options_.timeouts.restore);
      try {
        GuardianRequest request;
        request.set_abort(e.what());
        // Answers to earlier requests may come first; hanging up on those would look as if we had died.
        GuardianReply reply = guardian_->ask(request, deadline);
        while (reply.body_case() != GuardianReply::kAborted) reply = guardian_->await(deadline);
      } catch (const std::exception& again) {
        c_.log.debug("the guardian at the abort: {}", again.what());
      }
      guardian_->leave(deadline);
      guardian_.reset();
      settle_without_guardian(e.what());
    }
    // A refusal tells the source that nothing of the session is left here.
    const std::optional<JournalEntry> left = c_.store.peek(id_, Role::destination);
    if (not_ours_ || !left || is_final(left->state)) channel_.refuse(e.what());
    c_.events.event(refusal ? "refused" : "failed", e.what());
    return refusal ? kRefused : kFailed;
  }

  void settle_without_guardian(const std::string& reason) noexcept {
    try {
      // The id is the peer's choice: it may name the session of another.
      const std::optional<JournalEntry> entry = c_.store.peek(id_, Role::destination);
      if (not_ours_ || !entry || entry->peer_name != channel_.stream().peer_name()) return;
      // Ready was not said: PREPARED, if it came to that, is ours to take back.
      c_.sessions.discard(id_, peer_epoch_, finishing_ ? kPeer : kOwn, reason);
    } catch (const std::exception& e) {
      c_.log.warn("discarding session {}: {}", to_hex(id_), e.what());
    }
  }

  int in_doubt(const std::exception& e) {
    c_.log.debug("session {} after ready: {}", to_hex(id_), e.what());
    if (guardian_) guardian_->let_go();
    guardian_.reset();
    std::optional<JournalEntry> entry;
    try {
      entry = c_.sessions.look(id_);
    } catch (const std::exception& again) {
      c_.log.warn("{}", again.what());
    }
    if (entry && entry->state == State::aborted) {
      channel_.refuse(entry->reason);
      c_.events.event("failed", "the copy of " + label_ + " is gone: " + entry->reason, {{"session", to_hex(id_)}});
      return kFailed;
    }
    if (entry && entry->state == State::gate_open && entry->lazy) {
      c_.events.event("cut",
                      label_ + " runs here and waits for pages of the source, which may come again (" + e.what() + ")",
                      {{"session", to_hex(id_)}});
      return kInDoubt;
    }
    if (entry && entry->state == State::lost) {
      c_.events.event("failed", label_ + " has lost pages: " + entry->reason, {{"session", to_hex(id_)}});
      return kFailed;
    }
    if (entry && (entry->state == State::gate_open || entry->state == State::whole || entry->state == State::done)) {
      c_.events.event("done", label_ + " runs here (" + e.what() + ")", {{"session", to_hex(id_)}});
      return kMoved;
    }
    c_.events.event("in-doubt",
                    label_ + " waits behind its gate, and the source does not say whether it may run (" + e.what() +
                        "); run `migrate resolve " + to_hex(id_) + "` at the source",
                    {{"session", to_hex(id_)}});
    return kInDoubt;
  }

  const ReceiveContext& c_;
  const ReceiveOptions& options_;
  ControlChannel& channel_;
  SessionId id_{};
  uint64_t peer_epoch_ = 0;
  std::string label_;
  bool checked_ = false;
  std::set<std::string> told_;  ///< reasons to refuse
  bool finishing_ = false;
  bool lazy_ = false;       ///< pages may come after the gate
  wire::Discards missing_;  ///< these
  bool not_ours_ = false;   ///< the session never began here
  uint32_t tasks_ = 0;
  std::optional<Guardian> guardian_;
  std::optional<SessionWatch> watch_;
  std::optional<PageIntake> intake_;
  std::optional<CopyGuardian> copy_;  ///< of these two
  LayoutParts parts_;
  bool room_made_ = false;       ///< for the round whose pages come next
  std::optional<Message> next_;  ///< received, and not looked at yet
  Fd images_;
};

}  // namespace

int serve_migration(const ReceiveContext& context, ControlChannel& channel, Message first) {
  return ReceiveSession(context, channel).run(std::move(first));
}

void signal_status(int fd) noexcept {
  if (fd < 0) return;
  const char nul = 0;
  if (::write(fd, &nul, 1) != 1) return;  // nobody listens: not our business
}

}  // namespace migrate
