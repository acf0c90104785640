#include "migrate/session/handover/source_hold.h"

#include "migrate/session/journal/lost_locks.h"
#include "migrate/session/wire/missing_wire.h"

namespace migrate {
namespace {
using std::chrono::milliseconds;
using wire::GuardianReply;
using wire::GuardianRequest;
constexpr milliseconds kKillTime{30'000};
}  // namespace

SourceHold::SourceHold(JournalStore& store, TreeKeeper& keeper, const Guardian::Spawn& spawn, Timeouts timeouts,
                       Logger& log)
    : store_(store), keeper_(keeper), timeouts_(timeouts), log_(log), spawn_(spawn) {}

void SourceHold::start(const GuardianRequest::StartSource& start) {
  id_ = *session_from_hex(start.session());
  lazy_ = start.dump().lazy();
  guardian_.emplace(spawn_);
  GuardianRequest request;
  *request.mutable_start_source() = start;
  const GuardianReply reply = guardian_->ask(request, Deadline::in(timeouts_.answer));
  epoch_ = reply.started();
  started_ = true;
}

FrozenTree SourceHold::freeze(const std::vector<StopMark>& stops, const std::set<uint64_t>& shared_devices) {
  wire::StopMarks marks;
  for (const uint64_t device : shared_devices) marks.add_shared_devices(device);
  for (const StopMark& stop : stops) {
    wire::StopMarks::StopMark* mark = marks.add_marks();
    mark->set_tid(stop.tid);
    mark->set_stopped_at(stop.stopped_at);
    mark->set_let_go_at(stop.let_go_at);
  }
  GuardianRequest request;
  request.set_freeze(true);
  const Deadline deadline = Deadline::in(timeouts_.freeze + timeouts_.answer);
  guardian_->send(request);
  guardian_->socket().send_blob(marks);
  FrozenTree frozen;
  const GuardianReply reply = guardian_->await(deadline);
  frozen.stopping_since_ns = reply.stopping_since_ns();
  gave_up_locks_ = reply.locks_given_up();
  frozen.images = guardian_->socket().receive_blob(deadline);
  frozen.memories = receive_sources(guardian_->socket(), deadline);
  if (lazy_) {
    wire::Discards lazy;
    guardian_->socket().receive_blob(lazy, deadline);
    add_from_wire(lazy, frozen.lazy_pages);
  }
  return frozen;
}

void SourceHold::look_again() {
  GuardianRequest request;
  request.set_look_again(true);
  guardian_->send(request);
}

void SourceHold::freeze_is_near() {
  GuardianRequest request;
  request.set_freeze_is_near(true);
  guardian_->send(request);
}

void SourceHold::alive() {
  if (!guardian_) return;
  guardian_->check_alive();
  GuardianRequest request;
  request.set_alive(true);
  guardian_->send(request);
}

void SourceHold::stay() noexcept {
  try {
    alive();
  } catch (const std::exception& e) {
    log_.debug("the guardian at an abort: {}", e.what());
  }
}

void SourceHold::heartbeat() noexcept {
  try {
    alive();
    return;
  } catch (const std::exception& e) {
    log_.debug("the guardian while pages are fed: {}", e.what());
  }
  try {
    succeed_guardian();
  } catch (const std::exception& e) {
    log_.warn("session {}: {}", to_hex(id_), e.what());
  }
}

bool SourceHold::tree_lives() const {
  const std::optional<JournalEntry> now = entry();
  return now && keeper_.lives(*now);
}

void SourceHold::commit() {
  try {
    GuardianRequest request;
    request.set_commit(true);
    guardian_->ask(request, Deadline::in(timeouts_.answer));
    committed_ = true;
    return;
  } catch (const Error& e) {
    // The answer may be lost, the step is not: the journal decides.
    log_.debug("the guardian at the commit: {}", e.what());
    leave_guardian();
    const std::optional<JournalEntry> now = store_.peek(id_, Role::source);
    committed_ = now && now->state == State::committed;
    if (!committed_) throw;
  }
}

void SourceHold::kill() {
  if (guardian_) {
    try {
      GuardianRequest request;
      request.set_kill(true);
      guardian_->ask(request, Deadline::in(kKillTime));
      guardian_->leave(Deadline::in(timeouts_.answer));
      guardian_.reset();
      return;
    } catch (const Error& e) {
      log_.debug("the guardian at the kill: {}", e.what());
    }
  }
  Journal& journal = succeed_guardian();
  keeper_.kill(journal.entry());
  if (journal.state() == State::committed) journal.step(State::done, kPeer, "it runs at the destination");
}

bool SourceHold::abort(const std::string& reason) {
  if (!started_) {
    if (guardian_) guardian_->leave(Deadline::in(timeouts_.answer));
    guardian_.reset();
    return true;
  }
  if (guardian_) {
    try {
      GuardianRequest request;
      request.set_abort(reason);
      const GuardianReply reply = guardian_->ask(request, Deadline::in(timeouts_.freeze + timeouts_.answer));
      if (reply.body_case() == GuardianReply::kAborted) {
        guardian_->leave(Deadline::in(timeouts_.answer));
        guardian_.reset();
        return true;
      }
    } catch (const Error& e) {
      log_.debug("the guardian at the abort: {}", e.what());
    }
  }
  leave_guardian();
  const std::optional<JournalEntry> now = store_.peek(id_, Role::source);
  if (!now) return true;  // the guardian let it run and could not write that down
  if (now->state == State::committed || now->state == State::done) {
    committed_ = true;
    return false;
  }
  abort_source(store_, keeper_, *now, reason, log_);
  return true;
}

std::optional<Journal> SourceHold::take_over() {
  succeed_guardian();
  std::optional<Journal> journal = std::move(journal_);
  journal_.reset();
  return journal;
}

void SourceHold::leave_guardian() {
  // It settles by itself when its agent leaves; one that does not answer is ended, so that there is one owner.
  if (guardian_) guardian_->leave(Deadline::in(timeouts_.answer));
  guardian_.reset();
}

Journal& SourceHold::succeed_guardian() {
  leave_guardian();
  if (!journal_) {
    journal_ = store_.take_over(id_, Role::source);
    if (!journal_) {
      throw Error("session " + to_hex(id_) + " was taken over by another process; see `migrate resolve`");
    }
    epoch_ = journal_->entry().epoch;
  }
  return *journal_;
}

void abort_source(JournalStore& store, TreeKeeper& keeper, const JournalEntry& seen, const std::string& reason,
                  Logger& log) {
  // Ours until the tree runs: whoever comes meanwhile would stop it once more.
  std::optional<Journal> journal;
  if (seen.state != State::aborted) {
    try {
      journal = store.take_over(seen.id, Role::source);
      if (!journal) throw Refusal("session " + to_hex(seen.id) + " is in the hands of another process", "wait for it");
      if (journal->state() == State::committed || journal->state() == State::done) {
        throw Refusal("session " + to_hex(seen.id) + " was committed meanwhile", "see `migrate resolve`");
      }
      if (journal->state() != State::aborted) journal->step(State::aborted, kOwn, reason);
    } catch (const Refusal&) {
      throw;
    } catch (const Error& e) {
      // Whatever the disk says, the tree runs on. An unknown session is in doubt at the destination, never resumed.
      const bool named = store.abort_by_name(seen.id);
      log.error("the abort of session {} could not be written ({}){}", to_hex(seen.id), e.what(),
                named ? "" : "; the session is forgotten");
    }
  }
  const std::vector<std::string> lost = keeper.run_on(seen);
  try {
    if (!journal && !lost.empty()) journal = store.take_over(seen.id, Role::source, false);
  } catch (const Error& e) {
    log.debug("session {}: {}", to_hex(seen.id), e.what());
  }
  if (journal) note_lost_locks(*journal, lost, log);
}

}  // namespace migrate
