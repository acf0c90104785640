// What the watch (watch.h) does once agent and guardian are gone.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "migrate/session/handover/settle.h"

namespace migrate {

/// How long a watch tries.
struct WatchTimes {
  std::chrono::milliseconds first{1'000}, longest{60'000};  ///< between two attempts: doubled each time
  /// For telling an abort: the tree runs, so a destination that never comes back costs a sleeping process only this
  /// long. A committed session is asked about without end, since its tree stands still.
  std::chrono::milliseconds telling{std::chrono::hours(24)};
};

/// Gives a destination where a program runs already the pages that it misses (feed_from_held_tree).
using FeedDestination = std::function<void(const JournalEntry& entry)>;

/// Settles a session that nobody holds any more. `asker`: how to ask the destination, given its address; `feed`: how to
/// feed it, if need be.
void settle_until_done(JournalStore& store, TreeKeeper& keeper, const SessionId& id, Role role, Timeouts timeouts,
                       const std::function<AskDestination(const std::string&)>& asker, const WatchTimes& times,
                       Events& events, Logger& log, const FeedDestination& feed = {});

}  // namespace migrate
