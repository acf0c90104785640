// Settling sessions whose agents died: what can be decided on this machine alone, and what the destination's answer
// decides.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "migrate/session/handover/destination_sessions.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/connector.h"

namespace migrate {

/// At the start of every command: sessions that nobody owns and that need no word of the other side. Source: not
/// committed ones run on. Destination: half-built copies are discarded.
/// `locks_are_free`: free_locks_there() was called for each; else one that needs it is left to its watch for a minute.
void settle_local(JournalStore& store, TreeKeeper& keeper, Timeouts timeouts, Events& events, Logger& log,
                  bool locks_are_free = false);

/// The same for one session that nobody owns. False: it failed, and is to be tried again.
bool settle_session(JournalStore& store, TreeKeeper& keeper, const JournalEntry& entry, Timeouts timeouts,
                    Events& events, Logger& log);

/// Asks the destination about a session; throws if it cannot be reached.
using AskDestination = std::function<wire::Answer(const SessionId&, uint64_t epoch, wire::Resolve::Want)>;
/// Connects and greets, for a later conversation about a session. Throws if the destination cannot be reached.
std::unique_ptr<ControlChannel> connect_about(const Connector& connector, const std::string& address, Timeouts timeouts,
                                              const SessionId& id, uint64_t epoch);
/// Connects anew for each question.
AskDestination ask_over(const Connector& connector, const std::string& address, Timeouts timeouts);

struct Settled {
  enum class Outcome { runs_here, runs_there, lost, in_doubt } outcome = Outcome::in_doubt;
  std::string sentence;
  bool needs_pages = false;  ///< in doubt until those of the copy here are there
};

/// Of a source session that nobody owns and that was not committed: if its tree gave up locks for the copy, the copy is
/// given up first, as far as the destination can be reached, so that the tree can take them when it runs on.
void free_locks_there(JournalStore& store, TreeKeeper& keeper, const JournalEntry& seen, const AskDestination& ask,
                      Logger& log) noexcept;
/// A receiver that is started again, by a service manager say, is there by then; so long a tree stands for its locks.
inline constexpr std::chrono::milliseconds kReceiverBack{5'000};
inline constexpr int kAskAgain = 100;  ///< ms
/// For asking it about that: the tree stands meanwhile.
Timeouts brief(Timeouts timeouts);

/// Settles a source session that we own: not committed → runs here; committed → as the destination says.
Settled settle_source(Journal& journal, TreeKeeper& keeper, const AskDestination& ask, Logger& log);
enum class Told {
  yes,
  not_yet,         ///< it could not be
  runs_there_too,  ///< ABORTED here, on the operator's word, and so two copies run: nobody but the operator ends one
};
/// Makes sure that the destination knows how a session ended here (ABORTED or DONE).
Told tell_outcome(JournalStore& store, TreeKeeper& keeper, const SessionId& id, const AskDestination& ask, Logger& log);
/// The destination's copy is let run, and lives.
bool runs_there(const wire::Answer& answer);

/// The destination's answer to a later source agent (`Resolve`). Refusal if the peer is not the session's.
wire::Answer answer_resolve(DestinationSessions& sessions, const wire::Message& message, const std::string& peer_name);

}  // namespace migrate
