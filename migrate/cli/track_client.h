// A command's connection to the keeper of a tree's dirty tracker (track_keeper.h).
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "migrate/cli/track_wire.h"

namespace migrate::cli {

class TrackClient {
 public:
  /// The keeper of `root`; nullopt if there is none.
  static std::optional<TrackClient> find(pid_t root);
  /// The same, started if there is none.
  static TrackClient find_or_start(pid_t root, std::chrono::seconds idle);

  struct Pages {
    std::vector<PageSource> sources;  ///< to be stored
    PagesByMemory unchanged;          ///< as the previous folder has them
    std::string full;                 ///< why there are none, if nothing could be left to the previous folder
  };
  /// The next round of the running tree. `previous`: run id of the folder that the pages left out stand in; empty:
  /// none. Throws Refusal if the tree cannot be tracked.
  Pages round(const std::string& previous, std::chrono::milliseconds timeout);
  /// That round stands in the folder with this run id, which has `pages`, with its parents.
  void stored(const std::string& folder, const PagesByMemory& pages);
  /// The last round, with the tree stopped: takes out of the runs of `all` what is unchanged, and returns that.
  Pages last(const std::string& previous, std::vector<PageSource>&& all);
  /// Ends the tracking; returns when the tree is not tracked any more.
  void end();

 private:
  explicit TrackClient(PacketSocket socket) : socket_(std::move(socket)) {}
  TrackMessage answer(TrackMessage::Kind expected, std::chrono::milliseconds patience);
  PacketSocket socket_;
};

}  // namespace migrate::cli
