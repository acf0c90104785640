// From READY on the source's word decides; and how a session ends that failed.
#include <poll.h>

#include <array>

#include "migrate/session/destination/feed_intake.h"
#include "migrate/session/destination/receive_session.h"
#include "migrate/session/telling/fault.h"

namespace migrate {

using wire::GuardianReply;
using wire::GuardianRequest;

void ReceiveSession::say_ready() {
  Message ready;
  ready.mutable_ready()->set_tasks(tasks_);
  channel_.send(std::move(ready));
  signal_status(options_.status_fd);
  c_.events.event("ready", label_ + " is complete behind its gate: " + std::to_string(tasks_) + " tasks",
                  {{"tasks", int64_t{tasks_}}, {"session", to_hex(id_)}});
  fault_point("destination-agent.ready-sent");
}

int ReceiveSession::await_decision() {
  Message decision = channel_.receive(Deadline::in(options_.timeouts.restore));
  while (decision.body_case() == Message::kCheck) {  // what it opened just before it was stopped
    questions_.answer(decision.check());
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

uint32_t ReceiveSession::open_gate(uint64_t epoch) {
  try {
    GuardianRequest request;
    request.set_open(epoch);
    return guardian_->ask(request, answer_by()).opened();
  } catch (const GuardianGone& e) {
    c_.log.debug("{}", e.what());
    guardian_.reset();
  }
  const std::optional<JournalEntry> entry = c_.sessions.open(id_, epoch, kPeer);
  if (!entry || (entry->state != State::gate_open && entry->state != State::whole && entry->state != State::done)) {
    throw Error("the copy of " + label_ + " died with its guardian before the gate opened; it never ran");
  }
  return entry->tasks.empty() ? 0 : static_cast<uint32_t>(entry->tasks.front().pid);
}

void ReceiveSession::await_whole() {
  try {
    ask_whole();
  } catch (const GuardianGone& e) {
    c_.log.debug("{}", e.what());
    guardian_.reset();
    await_whole_by_journal(c_, channel_, id_);  // what the guardian would have written there, whoever looks writes
  }
  fault_point("destination-agent.whole");
  say_whole(c_, channel_, id_);
  tell_whole(c_, id_, label_);
}

void ReceiveSession::ask_whole() {
  if (!guardian_) throw GuardianGone("the guardian is gone");
  GuardianRequest request;
  request.set_whole(true);
  guardian_->send(request);
  for (;;) {
    std::array<pollfd, 3> p{pollfd{guardian_->socket().fd(), POLLIN, 0}, pollfd{guardian_->death_fd(), POLLIN, 0},
                            pollfd{channel_.fd(), POLLIN | POLLRDHUP, 0}};
    ::poll(p.data(), p.size(), -1);
    if (p[0].revents != 0 || p[1].revents != 0) break;
    if (p[2].revents != 0) throw Disconnected(std::string("the source's connection has ended"));
  }
  guardian_->await(answer_by());
}

int ReceiveSession::await_done() {
  bool told = false;
  try {
    channel_.expect(Message::kDone, Deadline::in(options_.timeouts.restore));
    GuardianRequest request;
    request.set_done(true);
    if (guardian_) {
      try {
        guardian_->ask(request, answer_by());
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
  if (told) {
    guardian_->leave(answer_by());  // it may have a lazy host to wait for; the source need not
    guardian_.reset();
  }
  c_.events.event("done", "received " + label_, {{"session", to_hex(id_)}});
  return kMoved;
}

int ReceiveSession::aborted(const std::string& reason) {
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

int ReceiveSession::give_up(const std::exception& e) {
  const bool refusal = dynamic_cast<const Refusal*>(&e) != nullptr && !guardian_;
  const std::string reason = c_.interrupt.reason_of(e);
  channel_.stream().set_stop(nullptr);
  if (guardian_) {
    const Deadline deadline = Deadline::in(options_.timeouts.restore);
    try {
      GuardianRequest request;
      request.set_abort(reason);
      // Answers to earlier requests may come first; hanging up on those would look as if we had died.
      GuardianReply reply = guardian_->ask(request, deadline);
      while (reply.body_case() != GuardianReply::kAborted) reply = guardian_->await(deadline);
    } catch (const std::exception& again) {
      c_.log.debug("the guardian at the abort: {}", again.what());
    }
    guardian_->leave(deadline);
    guardian_.reset();
    settle_without_guardian(reason);
  }
  // A refusal tells the source that nothing of the session is left here.
  const std::optional<JournalEntry> left = c_.store.peek(id_, Role::destination);
  if (not_ours_ || !left || is_final(left->state)) channel_.refuse(reason);
  c_.events.event(refusal ? "refused" : "failed", reason);
  return refusal ? kRefused : kFailed;
}

void ReceiveSession::settle_without_guardian(const std::string& reason) noexcept {
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

int ReceiveSession::in_doubt(const std::exception& e) {
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
  if (!entry) {
    c_.events.event("in-doubt",
                    "the journal of " + label_ + " is gone from " + options_.state_dir +
                        "; look whether it runs here (" + e.what() + ")",
                    {{"session", to_hex(id_)}});
    return kInDoubt;
  }
  c_.events.event("in-doubt",
                  label_ + " waits behind its gate, and the source does not say whether it may run (" + e.what() +
                      "); run `migrate resolve " + to_hex(id_) + "` at the source",
                  {{"session", to_hex(id_)}});
  return kInDoubt;
}

}  // namespace migrate
