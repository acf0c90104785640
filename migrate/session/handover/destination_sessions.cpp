#include "migrate/session/handover/destination_sessions.h"

#include <poll.h>
#include <unistd.h>

#include "migrate/session/guardian/lazy_client.h"
#include "migrate/session/journal/lazy_cgroups.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/wire/channel.h"

namespace migrate {
namespace {

using wire::GuardianReply;
using wire::GuardianRequest;

constexpr std::chrono::milliseconds kHostLeaves{2'000};
/// Between two looks at what others are doing, milliseconds.
constexpr int kLook = 5;

void refuse_stale(const JournalEntry& entry, uint64_t peer_epoch) {
  if (peer_epoch >= entry.peer_epoch) return;
  throw StaleEpoch("an order of epoch " + std::to_string(peer_epoch) + " for session " + to_hex(entry.id) +
                   " is out of date: epoch " + std::to_string(entry.peer_epoch) + " was heard already");
}

}  // namespace

bool DestinationSessions::ask_guardian(const SessionId& id, const GuardianRequest& request) {
  Fd raw = connect_local(store_.socket_path(id));
  if (!raw) return false;
  PacketSocket socket(std::move(raw));
  try {
    socket.send(request);
    GuardianReply reply;
    switch (socket.receive(reply, Deadline::in(timeouts_.restore))) {
      case PacketSocket::Outcome::closed:
        return false;
      case PacketSocket::Outcome::timeout:
        throw Error("ask", "the guardian of session " + to_hex(id), ETIMEDOUT);
      case PacketSocket::Outcome::message:
        break;
    }
    if (reply.body_case() == GuardianReply::kFailed) throw Error(reply.failed().sentence());
    return true;
  } catch (const GuardianGone& e) {
    log_.debug("{}", e.what());
    return false;
  }
}

Journal DestinationSessions::own(const SessionId& id, uint64_t peer_epoch) {
  std::optional<Journal> journal = store_.take_over(id, Role::destination);
  if (!journal)
    throw Error("session " + to_hex(id) + " is in the hands of another process that does not answer; try again");
  if (peer_epoch > journal->entry().peer_epoch) journal->update([&](JournalEntry& e) { e.peer_epoch = peer_epoch; });
  return std::move(*journal);
}

std::optional<JournalEntry> DestinationSessions::look(const SessionId& id) {
  std::optional<JournalEntry> entry = settle_certain(id);
  if (entry) send_host_away(*entry);
  return entry;
}

std::optional<JournalEntry> DestinationSessions::settle_certain(const SessionId& id) {
  std::optional<JournalEntry> entry = store_.peek(id, Role::destination);
  if (!entry) return entry;
  if (entry->state == State::gate_open) let_run(keeper_, *entry);
  if (entry->state == State::gate_open && entry->lazy) return look_whole(id);
  const bool gone = entry->state == State::prepared && !can_run(*entry);
  // Whoever wrote ABORTED may have died before the copy was gone, and whoever wrote DONE before its socket was.
  const bool final = is_final(entry->state);
  if (entry->state != State::receiving && !gone && !final) return entry;
  std::optional<Journal> journal = store_.take_over(id, Role::destination, !final);
  // Whoever wrote ABORTED is just killing the copy: until that is done it has the locks that the source's tree wants
  // back.
  const Deadline deadline = Deadline::in(timeouts_.settle);
  while (!journal && entry->state == State::aborted && !deadline.passed()) {
    ::poll(nullptr, 0, kLook);
    journal = store_.take_over(id, Role::destination, false);
  }
  if (!journal) return entry;  // somebody builds or holds it
  if (journal->state() == State::receiving) {
    journal->step(State::aborted, kOwn, "the agent that built it died");
  } else if (journal->state() == State::prepared && !can_run(journal->entry())) {
    journal->step(State::aborted, kTreeGone, "it died behind its gate, or those who held its missing pages did");
  }
  if (journal->state() == State::aborted) keeper_.discard(journal->entry());
  return journal->entry();
}

/// Behind its gate, with all that its pages depend on.
bool DestinationSessions::can_run(const JournalEntry& entry) {
  return keeper_.lives(entry) && (!entry.lazy || LazyClient::connect(store_.lazy_path(entry.id)));
}

void DestinationSessions::send_host_away(const JournalEntry& entry) {
  if (entry.state != State::whole && !is_final(entry.state)) return;
  const std::string path = store_.lazy_path(entry.id);
  if (::access(path.c_str(), F_OK) == 0) {
    try {
      if (std::optional<LazyClient> host = LazyClient::connect(path)) {
        // Of a copy that was killed it may not have noticed yet that nothing is missing any more.
        const bool copy_is_there = entry.state != State::aborted && keeper_.lives(entry);
        copy_is_there ? host->settled() : host->discard();
      } else {
        ::unlink(path.c_str());
      }
    } catch (const Error& e) {
      log_.debug("the lazy host of session {}: {}", to_hex(entry.id), e.what());
    }
  }
  remove_lazy_cgroups(entry, kHostLeaves, log_);
}

/// Its guardian, if it lives, writes down when nothing is missing any more; else whoever looks.
std::optional<JournalEntry> DestinationSessions::look_whole(const SessionId& id) {
  std::optional<Journal> journal = store_.take_over(id, Role::destination, false);
  if (!journal || journal->state() != State::gate_open) return store_.peek(id, Role::destination);
  const auto lost_with_copy = [&](const char* why) {
    write_pages_end(*journal, {.lost = why, .given_up = {}});
    keeper_.discard(journal->entry());
    return journal->entry();
  };
  if (journal->entry().boot_id != boot_id()) return lost_with_copy("this host was restarted while pages were missing");
  std::optional<LazyClient> host = LazyClient::connect(store_.lazy_path(id));
  // Unless it was killed it stays until the journal says how it ended. What was missing reads as zeros now: a program
  // that goes on with that is worse than none.
  if (!host) return lost_with_copy("all processes that held its missing pages were killed");
  LazyState now;
  try {
    now = host->ask(Deadline::in(timeouts_.answer));
  } catch (const GuardianGone&) {
    return journal->entry();  // another process of it takes over
  }
  if (now.missing != 0 && now.end.lost.empty()) return journal->entry();
  write_pages_end(*journal, now.end);
  host->settled();
  return journal->entry();
}

std::optional<JournalEntry> DestinationSessions::open(const SessionId& id, uint64_t peer_epoch, Authority authority) {
  std::optional<JournalEntry> entry = look(id);
  if (!entry) return entry;
  refuse_stale(*entry, peer_epoch);
  if (entry->state == State::prepared) {
    GuardianRequest request;
    request.set_open(peer_epoch);
    if (ask_guardian(id, request)) return store_.peek(id, Role::destination);
    Journal journal = own(id, peer_epoch);
    if (journal.state() == State::prepared) journal.step(State::gate_open, authority, "the source committed");
    if (journal.state() == State::gate_open) let_run(keeper_, journal.entry());
    return journal.entry();
  }
  return entry;
}

std::optional<JournalEntry> DestinationSessions::discard(const SessionId& id, uint64_t peer_epoch, Authority authority,
                                                         const std::string& reason) {
  std::optional<JournalEntry> entry = look(id);
  if (!entry) return entry;
  refuse_stale(*entry, peer_epoch);
  if (is_final(entry->state) || entry->source_runs) return entry;
  GuardianRequest request;
  request.set_abort(reason);
  if (ask_guardian(id, request)) return store_.peek(id, Role::destination);
  Journal journal = own(id, peer_epoch);
  if (journal.state() == State::prepared || journal.state() == State::receiving) {
    journal.step(State::aborted, authority, reason);
    keeper_.discard(journal.entry());
    send_host_away(journal.entry());
  }
  note_source_runs(journal);
  return journal.entry();
}

std::optional<JournalEntry> DestinationSessions::lose(const SessionId& id, uint64_t peer_epoch,
                                                      const std::string& reason) {
  std::optional<JournalEntry> entry = look(id);
  const auto needs_pages = [&] {
    return entry && entry->state == State::gate_open && entry->lazy && entry->boot_id == boot_id();
  };
  if (!needs_pages()) return entry;
  refuse_stale(*entry, peer_epoch);
  if (std::optional<LazyClient> host = LazyClient::connect(store_.lazy_path(id))) host->lose(reason);
  // Its guardian writes it down, or whoever looks.
  for (const Deadline deadline = Deadline::in(timeouts_.settle); needs_pages() && !deadline.passed(); entry = look(id))
    ::poll(nullptr, 0, kLook);
  return entry;
}

std::optional<JournalEntry> DestinationSessions::finish(const SessionId& id, uint64_t peer_epoch) {
  std::optional<JournalEntry> entry = look(id);
  if (!entry || (entry->state != State::gate_open && entry->state != State::whole)) return entry;
  refuse_stale(*entry, peer_epoch);
  if (entry->state == State::gate_open && entry->lazy)
    throw Refusal("session " + to_hex(id) + " still needs pages of the source", "let that bring them");
  GuardianRequest request;
  request.set_done(true);
  if (ask_guardian(id, request)) return store_.peek(id, Role::destination);
  Journal journal = own(id, peer_epoch);
  if (journal.state() == State::gate_open || journal.state() == State::whole)
    journal.step(State::done, kPeer, "the source tree is gone");
  return journal.entry();
}

}  // namespace migrate
