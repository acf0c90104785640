// What the guardians of both sides do alike: the first request, the first journal entry, failures as replies.
#pragma once

#include <optional>

#include "core/base/log.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/journal/journal.h"
#include "migration.pb.h"

namespace migrate {

/// The agent's first request; nullopt if it went away, or said nothing for half a minute.
std::optional<wire::GuardianRequest> await_start(PacketSocket& agent);

/// A journal's first entry, for StartSource and StartDestination. Throws Error if the session has no proper id.
template <class Start>
JournalEntry first_entry(Role role, const Start& start) {
  const auto id = session_from_hex(start.session());
  if (!id) throw Error("start", "a session without an id", EINVAL);
  JournalEntry entry;
  entry.id = *id;
  entry.role = role;
  entry.label = start.label();
  entry.peer = start.peer();
  return entry;
}

/// For steps after which only forward is right.
void warn_unless_durable(const Journal& journal, Logger& log);

/// Throws GuardianGone if the agent is.
void reply_started(PacketSocket& agent, uint64_t epoch);
/// An agent that is gone is none of our business any more: false.
bool reply_failed(PacketSocket& agent, const Error& failure);

}  // namespace migrate
