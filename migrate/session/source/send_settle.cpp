// How the source agent ends a migration that failed: before commit the tree runs on, after it the destination is asked.
#include <poll.h>

#include <future>

#include "migrate/session/journal/lost_locks.h"
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/failure.h"

namespace migrate {

int SendSession::give_up(const std::exception& e) {
  const bool refused = (!touched() || undone_) && dynamic_cast<const Refusal*>(&e) != nullptr;
  const bool touched = this->touched();
  const std::string reason = interrupt_.reason_of(e);
  bool runs = true;
  if (plan_) plan_->before_running_on();
  if (begun_ && hold_.gave_up_locks()) {
    const uint64_t epoch = hold_.epoch();
    const auto freed = std::async(std::launch::async, [&] { free_locks_there(reason, epoch); });
    // The guardian waits for us, with the tree.
    while (freed.wait_for(options_.timeouts.silence / 4) != std::future_status::ready) hold_.stay();
  }
  try {
    runs = hold_.abort(reason);
  } catch (const std::exception& again) {
    events_.event("in-doubt", "session " + to_hex(id_) + ": " + again.what(), {{"session", to_hex(id_)}});
    return kInDoubt;
  }
  if (!runs) return in_doubt(reason);
  plan_.reset();
  if (peer_.has_streams()) peer_.sender().cancel();
  tell_peer(reason);
  const std::string here = touched                     ? " runs on here" + what_it_lacks()
                           : refused || label_.empty() ? ""
                                                       : " was not touched";
  events_.event(refused ? "refused" : "failed", reason + (here.empty() ? "" : "; " + label_ + here),
                {{"touched", touched}});
  if (refused) tell_other_refusals(events_, e);
  return refused ? kRefused : kFailed;
}

std::string SendSession::what_it_lacks() const noexcept {
  try {
    const std::optional<JournalEntry> left = store_.peek(id_, Role::source);
    return left ? but_for_locks(*left) : "";
  } catch (const std::exception& e) {
    log_.debug("session {}: {}", to_hex(id_), e.what());
    return "";
  }
}

void SendSession::tell_peer(const std::string& reason) noexcept {
  try {
    if (peer_.connected()) peer_.channel().stream().set_stop(nullptr);
    if (peer_.connected() && !begun_) peer_.channel().refuse(reason);
    if (!begun_) {
      if (hold_.started()) store_.note_peer_settled(id_);  // it never knew the session
      return;
    }
    try {
      if (!told_) abort_there(reason);
      store_.note_peer_settled(id_);
      return;
    } catch (const std::exception& e) {
      log_.debug("telling the peer about the abort: {}", e.what());
    }
    peer_.close();
    if (tell_outcome(store_, *keeper_, id_, ask_, log_) != Told::yes) {
      events_.event("untold", "the destination could not be told; `migrate resolve` does that later",
                    {{"session", to_hex(id_)}});
    }
  } catch (const std::exception& e) {
    log_.debug("telling the peer about the abort: {}", e.what());
  }
}

void SendSession::abort_there(const std::string& reason) {
  if (peer_.channel().peer_refused()) return;
  Message message;
  message.mutable_abort()->set_reason(reason.substr(0, 1000));
  peer_.channel().send(std::move(message));
  await_aborted();
}

// Not committed, so nobody lets the copy run, whatever becomes of us after this.
void SendSession::free_locks_there(const std::string& reason, uint64_t epoch) noexcept {
  try {
    if (peer_.connected()) {
      peer_.channel().stream().set_stop(nullptr);
      abort_there(reason);
      told_ = true;
      return;
    }
  } catch (const std::exception& e) {
    log_.debug("the abort before the tree runs on: {}", e.what());
  }
  const Deadline deadline = Deadline::in(kReceiverBack);
  while (!told_) {
    try {
      ask_over(connector_, options_.address, brief(options_.timeouts))(id_, epoch, wire::Resolve::DISCARD);
      told_ = true;
    } catch (const std::exception& e) {
      log_.debug("the destination keeps the program's locks: {}", e.what());
      if (dynamic_cast<const Refusal*>(&e) != nullptr || deadline.passed()) return;
      ::poll(nullptr, 0, kAskAgain);
    }
  }
}

void SendSession::await_aborted() {
  const Deadline deadline = Deadline::in(options_.timeouts.settle);
  try {
    while (peer_.channel().receive(deadline).body_case() != Message::kAborted) {
    }
  } catch (const Refusal&) {
    if (!peer_.channel().peer_refused()) throw;
  }
}

int SendSession::leave_feed(const std::string& reason) {
  peer_.close();
  try {
    std::optional<Journal> journal = hold_.take_over();
    if (journal) journal->update([&](JournalEntry& e) { e.reason = reason; });
  } catch (const std::exception& e) {
    log_.warn("session {}: {}", to_hex(id_), e.what());
  }
  events_.event("left",
                label_ + ": " + reason + "; a process in the background goes on sending it; `migrate resolve " +
                    to_hex(id_) + "` tells how it stands, and sends it should nobody else",
                {{"session", to_hex(id_)}, {"reason", reason}});
  return kInDoubt;
}

int SendSession::in_doubt(const std::string& reason) {
  log_.debug("after the commit: {}", reason);
  Settled settled{Settled::Outcome::in_doubt, reason};
  try {
    peer_.close();
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
    case Settled::Outcome::lost:
    case Settled::Outcome::in_doubt:
      break;
  }
  events_.event("in-doubt", settled.sentence + "; see `migrate resolve " + to_hex(id_) + "`",
                {{"session", to_hex(id_)}});
  return kInDoubt;
}

}  // namespace migrate
