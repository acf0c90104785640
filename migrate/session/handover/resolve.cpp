// `migrate resolve`: what is in doubt on this host, and settling it by the other side's word, or the operator's.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>

#include "migrate/session/base/session.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/handover/source_feed.h"
#include "migrate/session/handover/still_coming.h"
#include "migrate/session/journal/lazy_cgroups.h"
#include "migrate/session/journal/lost_locks.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/telling/failure.h"

namespace migrate {
namespace {

constexpr std::chrono::milliseconds kSettling{5'000};
constexpr const char* kKilled = "the operator killed it";

/// As a shell takes them: "/sys/fs/cgroup", or "{/sys/fs/cgroup/pids,/sys/fs/cgroup/memory}".
std::string parents_of(const std::vector<std::string>& folders) {
  std::set<std::string> parents;
  for (const std::string& folder : folders) parents.insert(folder.substr(0, folder.rfind('/')));
  if (parents.size() == 1) return *parents.begin();
  std::string list;
  for (const std::string& parent : parents) list += (list.empty() ? "{" : ",") + parent;
  return list + "}";
}

class UnknownSession : public Refusal {
 public:
  explicit UnknownSession(const ResolveOptions& options)
      : Refusal("session " + options.session + " is not known in " + options.state_dir,
                "look at `migrate resolve`, or name the --state-dir of the command that moved it") {}
};

class Resolver {
 public:
  Resolver(const ResolveOptions& options, Events& events, Logger& log)
      : options_(options),
        events_(events),
        log_(log),
        store_(options.state_dir),
        keeper_(cgroup_keeper(log)),
        sessions_(store_, *keeper_, options.timeouts, log) {}

  int run() {
    check_session();
    const std::vector<JournalEntry> left_cgroups = who_left_cgroups();
    for (const JournalEntry& entry : store_.list()) {
      // Most need not be asked about, nor certificates be read for that.
      const AskDestination ask = [&](const SessionId& id, uint64_t epoch, wire::Resolve::Want want) {
        return asker(entry)(id, epoch, want);
      };
      free_locks_there(store_, *keeper_, entry, ask, log_);
    }
    settle_local(store_, *keeper_, options_.timeouts, events_, log_, true);
    tell_cgroups(left_cgroups);
    bool in_doubt = false;
    size_t open = 0;
    for (const JournalEntry& entry : store_.list()) {
      if (!options_.session.empty() && to_hex(entry.id) != options_.session) continue;
      if (is_final(entry.state) && entry.peer_settled) continue;
      ++open;
      try {
        in_doubt |= !(entry.role == Role::source ? settle_here(entry) : settle_there(entry));
      } catch (const Error& e) {
        in_doubt = true;
        tell("in-doubt", entry, e.what());
      }
    }
    if (open == 0) tell_nothing_open();
    // Nobody did what was to be forced, unless somebody had before.
    const bool not_forced = open == 0 && options_.force != ResolveOptions::Force::none && !was_killed_by_force();
    return in_doubt || not_forced ? kInDoubt : kMoved;
  }

 private:
  void check_session() const {
    if (options_.session.empty()) return;
    const SessionId id = *session_from_hex(options_.session);
    if (store_.peek(id, Role::source) || store_.peek(id, Role::destination)) return;
    throw UnknownSession(options_);
  }

  bool was_killed_by_force() const {
    if (options_.force != ResolveOptions::Force::kill) return false;
    const std::vector<JournalEntry> all = store_.list();
    return std::ranges::any_of(
        all, [&](const JournalEntry& e) { return to_hex(e.id) == options_.session && e.reason == kKilled; });
  }

  /// Whoever asks about one session hears how it ended.
  void tell_nothing_open() {
    bool told = false;
    for (const JournalEntry& entry : store_.list()) {
      if (options_.session.empty() || to_hex(entry.id) != options_.session) continue;
      tell("resolved", entry, "is settled" + but_for(entry.given_up) + but_for_locks(entry));
      told = true;
    }
    if (!told) events_.event("resolved", "nothing is in doubt here");
  }

  /// Sessions without a guardian that have cgroups of a lazy host.
  std::vector<JournalEntry> who_left_cgroups() const {
    std::vector<JournalEntry> all = store_.list();
    std::erase_if(all, [&](const JournalEntry& e) {
      return e.role != Role::destination || !has_lazy_cgroups(e) || store_.owner(e.id, e.role) != 0;
    });
    return all;
  }

  void tell_cgroups(const std::vector<JournalEntry>& left) const {
    for (const JournalEntry& entry : left) {
      if (!has_lazy_cgroups(entry))
        events_.event("cgroups",
                      "session " + to_hex(entry.id) +
                          ": the cgroups that the processes which brought its pages had left are removed",
                      {{"session", to_hex(entry.id)}});
    }
    for (const auto& [id, folders] : stray_lazy_cgroups(store_)) tell_stray(id, folders);
  }

  void tell_stray(const SessionId& id, const std::vector<std::string>& folders) const {
    const std::string session = to_hex(id);
    const std::string others = folders.size() == 1 ? "" : " (nor in " + std::to_string(folders.size() - 1) + " others)";
    events_.event("cgroups",
                  "session " + session + ": nobody is in its cgroup " + folders.front() + others + ", and " +
                      store_.path() + " has no journal of it; unless another state folder has, " +
                      "remove them: rmdir " + parents_of(folders) + "/" + lazy_cgroup_mark(id) + "?",
                  {{"session", session}});
  }

  void tell(const char* event, const JournalEntry& entry, const std::string& sentence) {
    events_.event(event,
                  to_hex(entry.id) + " " + std::string(name_of(entry.role)) + " " + std::string(name_of(entry.state)) +
                      " " + entry.label + ", peer " + entry.peer + ": " + sentence,
                  {{"session", to_hex(entry.id)},
                   {"role", std::string(name_of(entry.role))},
                   {"state", std::string(name_of(entry.state))},
                   {"label", entry.label},
                   {"peer", entry.peer},
                   {"tasks", static_cast<int64_t>(entry.tasks.size())},
                   {"reason", sentence}});
  }

  /// To whom `entry` is about, known by the name that the operator gives now, or gave to `send`.
  const Connector& connector(const JournalEntry& entry) {
    LinkOptions link = options_.link;
    if (link.tls_name.empty()) link.tls_name = entry.tls_name;
    return connectors_.try_emplace(link.tls_name, link).first->second;
  }

  AskDestination asker(const JournalEntry& entry) {
    try {
      return ask_over(connector(entry), options_.address.empty() ? entry.peer : options_.address,
                      entry.state == State::frozen ? brief(options_.timeouts) : options_.timeouts);
    } catch (const Error& e) {
      const std::string why = e.what();
      return [why](const SessionId&, uint64_t, wire::Resolve::Want) -> wire::Answer { throw Error(why); };
    }
  }

  /// False: in doubt.
  bool settle_here(const JournalEntry& seen) {
    const AskDestination ask = asker(seen);
    if (is_final(seen.state)) {
      if (options_.force == ResolveOptions::Force::kill && seen.state == State::aborted && keeper_->lives(seen))
        throw Refusal("the program runs here and is not held", "end it as you would any other: " + kill_of(seen));
      const std::string where = seen.reason == kKilled      ? "was killed here, on the operator's word"
                                : seen.state == State::done ? "runs at the destination"
                                : seen.state == State::lost ? "is lost"
                                                            : "runs on here";
      const Told told = tell_outcome(store_, *keeper_, seen.id, ask, log_);
      if (told == Told::runs_there_too) {
        tell("in-doubt", seen, "runs here and at the destination: the operator let it. " + end_one_of_two(seen));
        return false;
      }
      tell(told == Told::yes ? "resolved" : "untold", seen,
           where + (told == Told::yes ? "" : "; the destination could not be told yet"));
      return true;
    }
    std::optional<Journal> journal = take(seen);
    if (!journal) {
      const std::optional<JournalEntry> now = store_.peek(seen.id, Role::source);
      if (!now || (is_final(now->state) && now->peer_settled)) {
        if (now) tell("resolved", *now, "is settled");
        return true;
      }
      const bool follows = now->state == State::committed && now->feed;
      tell("busy", seen,
           "is in the hands of pid " + std::to_string(store_.owner(seen.id, seen.role)) +
               (follows ? ", which brings what the destination still needs" : ""));
      return options_.force == ResolveOptions::Force::none;
    }
    if (options_.force != ResolveOptions::Force::none) {
      force_here(*journal, ask);
      const SessionId id = journal->id();
      journal.reset();
      if (options_.force == ResolveOptions::Force::kill) tell_outcome(store_, *keeper_, id, ask, log_);
      return true;
    }
    Settled settled = settle_source(*journal, *keeper_, ask, log_);
    std::string cut;
    if (settled.needs_pages) {
      cut = feed(*journal);
      settled = settle_source(*journal, *keeper_, ask, log_);
    }
    const bool good = settled.outcome != Settled::Outcome::in_doubt;
    if (!good && !cut.empty()) settled.sentence += "; its feed ended: " + cut;
    tell(good ? "resolved" : "in-doubt", journal->entry(), settled.sentence);
    const JournalEntry now = journal->entry();
    journal.reset();
    if (is_final(now.state)) tell_outcome(store_, *keeper_, now.id, ask, log_);
    return good;
  }

  static std::string kill_of(const JournalEntry& entry) { return "kill " + std::to_string(entry.tasks.front().pid); }

  static std::string end_one_of_two(const JournalEntry& here) {
    const std::string session = to_hex(here.id);
    return "End one of the two: this one with `" + kill_of(here) + "`, or that one with `migrate resolve " + session +
           " --force-kill " + session + "` there";
  }

  /// It runs at the destination without all its pages, perhaps since we asked: nobody else feeds it, since the journal
  /// was free. Returns what has cut the feed.
  std::string feed(const Journal& journal) {
    try {
      feed_from_held_tree(journal.entry(),
                          {.connector = connector(journal.entry()),
                           .address = options_.address.empty() ? journal.entry().peer : options_.address,
                           .session = journal.id(),
                           .timeouts = options_.timeouts,
                           .options = {},
                           .events = events_});
      return {};
    } catch (const Error& e) {
      return e.what();
    }
  }

  /// The session's watch may be settling it right now.
  std::optional<Journal> take(const JournalEntry& seen) {
    const Deadline deadline = Deadline::in(seen.state == State::committed ? kSettling : std::chrono::milliseconds(0));
    for (;;) {
      std::optional<Journal> journal = store_.take_over(seen.id, Role::source);
      if (journal || deadline.passed()) return journal;
      ::poll(nullptr, 0, 20);
    }
  }

  void force_here(Journal& journal, const AskDestination& ask) {
    const bool run = options_.force == ResolveOptions::Force::run;
    // The other side hears of it first if it can: an order of an older epoch is refused there from now on.
    if (run) {
      std::optional<wire::Answer> answer;
      try {
        // Of one that runs there nothing is to be noted: this one stays as it is.
        answer = ask(journal.id(), journal.entry().epoch, wire::Resolve::ASK);
        if (!runs_there(*answer)) answer = ask(journal.id(), journal.entry().epoch, wire::Resolve::DISCARD);
      } catch (const Error& e) {
        log_.warn("the destination could not be told: {}", e.what());
      }
      if (answer && runs_there(*answer))
        throw Refusal("the program runs at the destination",
                      "`migrate resolve` without --force-run ends the frozen copy here when that needs it no more");
      const bool told = answer && (answer->rebooted() || answer->state() == wire::Answer::ABORTED ||
                                   answer->state() == wire::Answer::LOST || answer->state() == wire::Answer::UNKNOWN);
      journal.step_with(State::aborted, kOperator, "the operator let it run",
                        [told](JournalEntry& e) { e.peer_settled = told; });
      note_lost_locks(journal, keeper_->run_on(journal.entry()), log_);
    } else {
      if (journal.state() == State::frozen) journal.step(State::committed, kOwn, "the operator gave it up");
      if (journal.state() != State::committed) throw Refusal("the session is not held", "kill the program itself");
      keeper_->kill(journal.entry());
      journal.step(State::done, kOperator, kKilled);
    }
    tell("resolved", journal.entry(),
         run ? "runs on here, on the operator's word" + but_for_locks(journal.entry())
             : "killed here, on the operator's word");
  }

  bool settle_there(const JournalEntry& seen) {
    const std::optional<JournalEntry> entry = sessions_.look(seen.id);
    if (!entry || is_final(entry->state)) {
      if (entry) tell("resolved", *entry, "is settled" + but_for(entry->given_up));
      return true;
    }
    const bool rebooted = entry->boot_id != boot_id();
    if (entry->source_runs && !rebooted && options_.force == ResolveOptions::Force::none) return tell_of_two(*entry);
    if (entry->state == State::receiving) {
      tell("busy", *entry, "is being received");
      return true;
    }
    if (options_.force == ResolveOptions::Force::run && entry->state == State::prepared) {
      sessions_.open(seen.id, entry->peer_epoch, kOperator);
      tell("resolved", *entry, "runs here, on the operator's word");
      return true;
    }
    if (options_.force == ResolveOptions::Force::kill) return force_kill_there(*entry);
    if (entry->state == State::prepared) {
      tell("in-doubt", *entry, "waits behind its gate; run `migrate resolve` at the source, which decides");
      return false;
    }
    if (!rebooted && entry->state == State::gate_open && entry->lazy) {
      const uint64_t missing = missing_pages(store_, seen.id);
      tell("resolved", *entry,
           "runs here, and " + std::to_string(missing) + " pages of it are still at the source (" +
               human_bytes(missing * kPageSize) + "); they come as long as `send`, its watch or `migrate resolve` " +
               "runs there; a new connection needs `migrate receive` here");
      return true;
    }
    if (!rebooted) {
      tell("resolved", *entry,
           "runs here; the source has not said yet that its copy is gone, for which it needs `migrate receive` here");
      return true;
    }
    tell("in-doubt", *entry, "ran here until this host was restarted; a copy may be frozen at the source");
    return false;
  }

  /// Of two copies that run this is the one here.
  bool tell_of_two(const JournalEntry& entry) {
    const std::string session = to_hex(entry.id);
    if (!keeper_->lives(entry)) {
      std::optional<Journal> journal = store_.take_over(entry.id, Role::destination);
      if (journal) journal->step(State::done, kOperator, "the source's copy runs, and this one has ended");
      tell("resolved", entry, "ran here and has ended; it runs at the source");
      return true;
    }
    const uint64_t missing = entry.state == State::gate_open && entry.lazy ? missing_pages(store_, entry.id) : 0;
    tell("in-doubt", entry,
         "runs here and at the source: the operator let it." +
             (missing == 0 ? ""
                           : " " + std::to_string(missing) + " pages of this one are there and will not come: who " +
                                 "touches one waits.") +
             " End one of the two: this one with `migrate resolve " + session + " --force-kill " + session +
             "`, or that one with kill(1) there (and then call `migrate resolve` there)");
    return false;
  }

  /// With pages missing its guardian has the journal: that, or its lazy host, sees the copy end.
  std::optional<Journal> take_killed(const JournalEntry& entry) {
    std::optional<Journal> journal = store_.take_over(entry.id, Role::destination);
    if (journal) return journal;
    keeper_->discard(entry);
    for (const Deadline deadline = Deadline::in(kSettling); !journal && !deadline.passed();) {
      ::poll(nullptr, 0, 20);
      journal = store_.take_over(entry.id, Role::destination);
    }
    return journal;
  }

  bool force_kill_there(const JournalEntry& entry) {
    if (entry.state == State::prepared) {
      sessions_.discard(entry.id, entry.peer_epoch, kOperator, "the operator discarded it");
    } else {
      std::optional<Journal> journal = take_killed(entry);
      keeper_->discard(entry);
      if (journal && !is_final(journal->state())) journal->step(State::done, kOperator, kKilled);
      journal.reset();
      sessions_.look(entry.id);
    }
    tell("resolved", entry, "killed here, on the operator's word");
    return true;
  }

  const ResolveOptions& options_;
  Events& events_;
  Logger& log_;
  JournalStore store_;
  std::unique_ptr<TreeKeeper> keeper_;
  DestinationSessions sessions_;
  std::map<std::string, Connector> connectors_;  ///< by TLS name
};

void check_words(const ResolveOptions& options) {
  if (!options.session.empty() && !session_from_hex(options.session)) {
    throw Refusal("\"" + options.session + "\" is no session id",
                  "give all 32 digits, as `migrate resolve` lists them");
  }
  if (!options.address.empty()) parse_host_port(options.address);
  if (options.force == ResolveOptions::Force::none) return;
  if (options.session.empty() || options.typed_session != options.session) {
    throw Refusal("forcing needs the session's id, typed again",
                  "say which session, and its id behind the force option");
  }
}

}  // namespace

int run_resolve(const ResolveOptions& options, Logger& log) {
  PrintedEvents printed(options.report, "resolve");
  Events& events = printed;
  try {
    ResolveOptions adjusted = options;
    adjusted.timeouts = with_test_timeouts(options.timeouts);
    check_words(options);
    // A folder that is not there is not made: a mistyped one is to be noticed.
    if (::access(options.state_dir.c_str(), F_OK) != 0 && errno == ENOENT) {
      if (!options.session.empty()) throw UnknownSession(options);
      events.event("resolved", "nothing is in doubt here: there is no " + options.state_dir);
      return kMoved;
    }
    return Resolver(adjusted, events, log).run();
  } catch (const std::exception& e) {
    return tell_failure(events, e);
  }
}

}  // namespace migrate
