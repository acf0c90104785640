#include "migrate/session/handover/settle.h"

#include <poll.h>

#include <algorithm>

#include "core/freeze/cpu_throttle.h"
#include "migrate/session/handover/source_hold.h"
#include "migrate/session/journal/lost_locks.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/wire/greeting.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

using wire::Answer;
using wire::Resolve;

constexpr std::chrono::milliseconds kBrief{3'000};
/// For the watch of a session: so long others leave it alone.
constexpr std::chrono::nanoseconds kForWatch = std::chrono::minutes(1);

/// Frozen, with locks that the copy may have: first that is to be given up, as watches and `resolve` see to.
bool is_for_watch(const JournalEntry& entry) {
  return entry.role == Role::source && entry.state == State::frozen && !entry.locks.empty() &&
         std::chrono::system_clock::now().time_since_epoch() - std::chrono::nanoseconds(entry.updated_ns) < kForWatch;
}

/// An agent that was killed together with the keeper of its throttle left the tree without CPU time.
void lift_throttle(const JournalEntry& entry, Logger& log) {
  if (entry.tasks.empty() || !entry.tasks.front().lives()) return;
  try {
    Throttle::lift_left_over(Pid(entry.tasks.front().pid), to_hex(entry.id));
  } catch (const Error& e) {
    log.warn("session {}: {}", to_hex(entry.id), e.what());
  }
}

void settle_one_source(JournalStore& store, TreeKeeper& keeper, const JournalEntry& entry, Events& events,
                       Logger& log) {
  const bool same_boot = entry.boot_id == boot_id();
  if (entry.state == State::aborted) {
    // Whoever wrote ABORTED may have died before it let the tree go.
    if (same_boot) {
      abort_source(store, keeper, entry, entry.reason, log);
      lift_throttle(entry, log);
    }
    return;
  }
  if (entry.state != State::preparing && entry.state != State::frozen) return;
  // Rebooted or dead while it was frozen: the destination may hold the only copy, see settle_source.
  if (entry.state == State::frozen && !keeper.lives(entry)) return;
  abort_source(store, keeper, entry, "its agent and guardian died", log);
  lift_throttle(entry, log);
  events.event("settled",
               "session " + to_hex(entry.id) + " was not committed: " + entry.label + " runs on here" +
                   but_for_locks(store.peek(entry.id, Role::source).value_or(entry)),
               {{"session", to_hex(entry.id)}});
}

Settled after_answer(Journal& journal, TreeKeeper& keeper, Answer answer, const AskDestination& ask, Logger& log) {
  const std::string name = journal.entry().label;
  const std::string session = to_hex(journal.id());
  const bool gone = !keeper.lives(journal.entry());
  if (answer.lazy() && !answer.rebooted() && gone) answer = ask(journal.id(), journal.entry().epoch, Resolve::LOSE);
  switch (answer.state()) {
    case Answer::LOST:
      if (gone) {
        keeper.kill(journal.entry());  // its cgroup is left
        journal.step_with(State::lost, kTreeGone, "its tree is gone, and pages that were missing at the destination",
                          [](JournalEntry& e) { e.peer_settled = true; });
        return {Settled::Outcome::lost, name +
                                            " is lost: it ran at the destination and needed pages of the copy here, " +
                                            "which is gone (" + answer.reason() + ")"};
      }
      return {Settled::Outcome::in_doubt,
              name + " ran at the destination until pages were lost that were still here (" + answer.reason() +
                  "); the frozen copy here is as it was when it left: `migrate resolve --force-run " + session +
                  "`, or --force-kill"};
    case Answer::GATE_OPEN:
    case Answer::WHOLE:
    case Answer::DONE:
      if (answer.lazy() && !answer.rebooted())
        return {Settled::Outcome::in_doubt,
                name + " runs at the destination and still needs pages of the frozen copy here", true};
      if (answer.rebooted()) {
        return {Settled::Outcome::in_doubt,
                "the destination opened the gate for " + name + " and was restarted since; only you can say whether " +
                    "the frozen copy here may run: `migrate resolve --force-run " + session + "`, or --force-kill"};
      }
      keeper.kill(journal.entry());
      journal.step_with(State::done, kPeer, "it runs at the destination",
                        [&](JournalEntry& e) { e.given_up = answer.given_up(); });
      try {
        ask(journal.id(), journal.entry().epoch, Resolve::FINISH);
        journal.update([](JournalEntry& e) { e.peer_settled = true; });
      } catch (const Error& e) {
        log.debug("telling the destination that the source is gone: {}", e.what());
      }
      return {Settled::Outcome::runs_there, name + " runs at the destination" + but_for(answer.given_up())};
    case Answer::ABORTED:
      journal.step_with(State::aborted, kPeer, "the destination aborted: " + answer.reason(),
                        [](JournalEntry& e) { e.peer_settled = true; });
      note_lost_locks(journal, keeper.run_on(journal.entry()), log);
      return {Settled::Outcome::runs_here, name + " runs on here; the destination's copy never ran (" +
                                               answer.reason() + ")" + but_for_locks(journal.entry())};
    case Answer::UNKNOWN:
      return {Settled::Outcome::in_doubt, "the destination does not know session " + session + "; look whether " +
                                              name + " runs there: if it does, `migrate resolve --force-kill " +
                                              session + "` ends the frozen copy here, else --force-run lets it run"};
    default:
      return {Settled::Outcome::in_doubt, "the destination has not opened the gate for session " + session + " yet"};
  }
}

}  // namespace

bool settle_session(JournalStore& store, TreeKeeper& keeper, const JournalEntry& entry, Timeouts timeouts,
                    Events& events, Logger& log) {
  if (store.owner(entry.id, entry.role) != 0) return true;
  try {
    if (entry.role == Role::source) {
      settle_one_source(store, keeper, entry, events, log);
    } else {
      DestinationSessions(store, keeper, timeouts, log).look(entry.id);
    }
    return true;
  } catch (const Error& e) {
    log.warn("session {}: {}", to_hex(entry.id), e.what());
    return false;
  }
}

void settle_local(JournalStore& store, TreeKeeper& keeper, Timeouts timeouts, Events& events, Logger& log,
                  bool locks_are_free) {
  std::vector<std::string> damaged;
  for (const JournalEntry& entry : store.list(&damaged))
    if (locks_are_free || !is_for_watch(entry)) settle_session(store, keeper, entry, timeouts, events, log);
  for (const std::string& sentence : damaged) log.warn("{}", sentence);
}

std::unique_ptr<ControlChannel> connect_about(const Connector& connector, const std::string& address, Timeouts timeouts,
                                              const SessionId& id, uint64_t epoch) {
  const Deadline deadline = Deadline::in(timeouts.connect);
  auto channel = std::make_unique<ControlChannel>(connector.connect(parse_host_port(address), deadline, nullptr));
  check_hello_version(greet(*channel, deadline, timeouts.answer).there);
  channel->set_session(id, epoch);
  return channel;
}

AskDestination ask_over(const Connector& connector, const std::string& address, Timeouts timeouts) {
  return [&connector, address, timeouts](const SessionId& id, uint64_t epoch, Resolve::Want want) {
    const std::unique_ptr<ControlChannel> channel = connect_about(connector, address, timeouts, id, epoch);
    wire::Message question;
    question.mutable_resolve()->set_want(want);
    channel->send(std::move(question));
    // Opening or discarding takes as long as a restore at most.
    return channel->expect(wire::Message::kAnswer, Deadline::in(timeouts.restore)).answer();
  };
}

Timeouts brief(Timeouts timeouts) {
  timeouts.connect = std::min(timeouts.connect, kBrief);
  timeouts.answer = std::min(timeouts.answer, kBrief);
  timeouts.restore = std::min(timeouts.restore, 2 * kBrief);
  return timeouts;
}

void free_locks_there(JournalStore& store, TreeKeeper& keeper, const JournalEntry& seen, const AskDestination& ask,
                      Logger& log) noexcept {
  if (seen.role != Role::source || seen.state != State::frozen || seen.locks.empty()) return;
  const Deadline deadline = Deadline::in(kReceiverBack);
  do {
    try {
      // Ours while we ask: nobody commits it meanwhile. Of a tree that is gone the copy may be the only one.
      const std::optional<Journal> journal = store.take_over(seen.id, Role::source, false);
      if (journal && (journal->state() != State::frozen || !keeper.lives(journal->entry()))) return;
      if (journal) {
        ask(seen.id, journal->entry().epoch, Resolve::DISCARD);
        return;
      }
    } catch (const Refusal& e) {
      log.debug("session {}: {} does not give up its copy: {}", to_hex(seen.id), seen.peer, e.what());
      return;
    } catch (const std::exception& e) {
      log.debug("session {}: freeing its locks at {}: {}", to_hex(seen.id), seen.peer, e.what());
    }
    ::poll(nullptr, 0, kAskAgain);
  } while (!deadline.passed());
}

Settled settle_source(Journal& journal, TreeKeeper& keeper, const AskDestination& ask, Logger& log) {
  const bool gone = !keeper.lives(journal.entry());
  if (journal.state() == State::frozen && gone) {
    journal.step(State::committed, kTreeGone, "the frozen tree is gone; only the destination's copy is left");
  }
  if (journal.state() == State::preparing || journal.state() == State::frozen) {
    journal.step(State::aborted, gone ? kTreeGone : kOwn, "its agent and guardian died");
    note_lost_locks(journal, keeper.run_on(journal.entry()), log);
    lift_throttle(journal.entry(), log);
  }
  if (journal.state() == State::aborted)
    return {Settled::Outcome::runs_here, journal.entry().label + " runs on here" + but_for_locks(journal.entry())};
  if (journal.state() == State::done) {
    return {Settled::Outcome::runs_there, journal.entry().label + " runs at the destination"};
  }
  try {
    return after_answer(journal, keeper, ask(journal.id(), journal.entry().epoch, Resolve::OPEN), ask, log);
  } catch (const Error& e) {
    return {Settled::Outcome::in_doubt, journal.entry().label + " stays frozen here, since it may run at " +
                                            journal.entry().peer + ", which cannot be asked: " + e.what() +
                                            "; it is settled as soon as `migrate receive` answers there"};
  }
}

bool runs_there(const Answer& answer) {
  const bool open =
      answer.state() == Answer::GATE_OPEN || answer.state() == Answer::WHOLE || answer.state() == Answer::DONE;
  return open && !answer.rebooted() && !answer.gone();
}

Told tell_outcome(JournalStore& store, TreeKeeper& keeper, const SessionId& id, const AskDestination& ask,
                  Logger& log) {
  const std::optional<JournalEntry> entry = store.peek(id, Role::source);
  if (!entry || !is_final(entry->state) || entry->peer_settled) return Told::yes;
  const bool aborted = entry->state == State::aborted;
  try {
    // The operator may have killed it before the destination had all of it.
    if (!aborted && entry->feed) ask(id, entry->epoch, Resolve::LOSE);
    const Answer answer = ask(id, entry->epoch, aborted ? Resolve::DISCARD : Resolve::FINISH);
    if (aborted && runs_there(answer)) {
      if (keeper.lives(*entry)) return Told::runs_there_too;
      // One of two copies, and it has ended; with it, what it had of the other's pages.
      if (answer.lazy()) ask(id, entry->epoch, Resolve::LOSE);
    }
    // A restart took its copy, whatever its journal says.
    const bool unheard = aborted ? answer.state() == Answer::RECEIVING || answer.state() == Answer::PREPARED
                                 : answer.state() == Answer::ABORTED;
    if (unheard && !answer.rebooted()) return Told::not_yet;
    store.note_peer_settled(id);
    return Told::yes;
  } catch (const Error& e) {
    log.debug("telling {} how session {} ended: {}", entry->peer, to_hex(id), e.what());
    return Told::not_yet;
  }
}

Answer answer_resolve(DestinationSessions& sessions, const wire::Message& message, const std::string& peer_name) {
  const SessionId id = session_of(message);
  Answer answer;
  std::optional<JournalEntry> entry = sessions.look(id);
  if (!entry) return answer;
  if (entry->peer_name != peer_name) {
    throw Refusal("session " + to_hex(id) + " came from " + entry->peer_name + ", not from " + peer_name,
                  "ask with that host's certificate");
  }
  switch (message.resolve().want()) {
    case Resolve::ASK:
      break;
    case Resolve::OPEN:
      entry = sessions.open(id, message.epoch(), kPeer);
      break;
    case Resolve::DISCARD:
      entry = sessions.discard(id, message.epoch(), kPeer, "the source aborted");
      break;
    case Resolve::LOSE:
      entry = sessions.lose(id, message.epoch(), "the tree at the source is gone");
      break;
    case Resolve::FINISH:
      entry = sessions.finish(id, message.epoch());
      break;
  }
  switch (entry->state) {
    case State::receiving:
      answer.set_state(Answer::RECEIVING);
      break;
    case State::prepared:
      answer.set_state(Answer::PREPARED);
      break;
    case State::aborted:
      answer.set_state(Answer::ABORTED);
      break;
    case State::gate_open:
      answer.set_state(Answer::GATE_OPEN);
      break;
    case State::done:
      answer.set_state(Answer::DONE);
      break;
    case State::whole:
      answer.set_state(Answer::WHOLE);
      break;
    case State::lost:
      answer.set_state(Answer::LOST);
      break;
    default:
      break;
  }
  answer.set_lazy(entry->lazy && entry->state == State::gate_open);
  answer.set_rebooted(entry->boot_id != boot_id());
  const bool let_run = entry->state == State::gate_open || entry->state == State::whole || entry->state == State::done;
  answer.set_gone(let_run && !sessions.lives(*entry));
  answer.set_reason(entry->reason.substr(0, 4096));  // check_bounds takes no more
  answer.set_given_up(entry->given_up.substr(0, 4096));
  return answer;
}

}  // namespace migrate
