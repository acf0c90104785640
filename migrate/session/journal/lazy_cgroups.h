// Cgroups of a session's lazy host: each of its three processes (its seats) has one of its own in every hierarchy by
// which processes are killed, apart from the receiver's, so that no end of one cgroup ends all three.
#pragma once

#include <array>
#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// Where they are to be, for the journal, which must name them before they exist. `without`: why there are none in some
/// hierarchy; empty: there is one in each.
struct LazyCgroups {
  std::vector<std::string> folders;
  std::string without;
};
LazyCgroups plan_lazy_cgroups(const SessionId& id);

/// Makes them; those that cannot be made, and those that are another's, are left out.
LazyCgroups make_lazy_cgroups(LazyCgroups planned);

/// Descriptors by which a process enters those of a seat: write(2) "0" to each. Those that are gone are left out.
std::array<std::vector<Fd>, 3> open_lazy_cgroups(const JournalEntry& entry);

/// Whether one of the session's is there.
bool has_lazy_cgroups(const JournalEntry& entry);

/// Those in which nobody is, of sessions that the state folder has no journal of: it was deleted, or is in another
/// folder.
std::map<SessionId, std::vector<std::string>> stray_lazy_cgroups(const JournalStore& store);

/// When the session needs its host no more: waits that long for its processes to leave. Never throws: who looks at the
/// session later tries again.
void remove_lazy_cgroups(const JournalEntry& entry, std::chrono::milliseconds patience, Logger& log) noexcept;

}  // namespace migrate
