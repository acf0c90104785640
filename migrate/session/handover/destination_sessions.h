// Sessions at the destination, for agents that did not start them.
#pragma once

#include <optional>
#include <string>

#include "migrate/session/base/options.h"
#include "migrate/session/guardian/guardian.h"

namespace migrate {

/// The destination's side of a session for an agent that did not start it: asks the guardian through its socket, or
/// acts on the journal when there is none. Every function returns how the session stands afterwards.
class DestinationSessions {
 public:
  DestinationSessions(JournalStore& store, TreeKeeper& keeper, Timeouts timeouts, Logger& log)
      : store_(store), keeper_(keeper), timeouts_(timeouts), log_(log) {}

  /// First settles what is certain: a copy that is dead behind its gate, or that no agent builds any more.
  std::optional<JournalEntry> look(const SessionId& id);
  std::optional<JournalEntry> open(const SessionId& id, uint64_t peer_epoch, Authority authority);
  /// Of a copy that runs already it is only noted that the source's tree runs, too.
  std::optional<JournalEntry> discard(const SessionId& id, uint64_t peer_epoch, Authority authority,
                                      const std::string& reason);
  /// Pages that a copy which runs here still misses will not come any more: who touches one gets SIGBUS.
  std::optional<JournalEntry> lose(const SessionId& id, uint64_t peer_epoch, const std::string& reason);
  std::optional<JournalEntry> finish(const SessionId& id, uint64_t peer_epoch);
  bool lives(const JournalEntry& entry) const { return keeper_.lives(entry); }

 private:
  /// True if a guardian answered.
  bool ask_guardian(const SessionId& id, const wire::GuardianRequest& request);
  std::optional<JournalEntry> settle_certain(const SessionId& id);
  std::optional<JournalEntry> look_whole(const SessionId& id);
  bool can_run(const JournalEntry& entry);
  /// A lazy host that is not needed any more leaves, and its cgroups go.
  void send_host_away(const JournalEntry& entry);
  Journal own(const SessionId& id, uint64_t peer_epoch);

  JournalStore& store_;
  TreeKeeper& keeper_;
  Timeouts timeouts_;
  Logger& log_;
};

}  // namespace migrate
