// The process that keeps a tree's dirty tracker between pre-dump commands, each of which is a process of its own.
//
// The first `pre-dump` starts it: this program executed again, in a session of its own, listening on
// /run/migrate/track-PIDNS-PID.sock (root's alone; PIDNS tells pid namespaces apart). It holds the root task's pidfd,
// so that a socket that answers belongs to the task that has that number now. The next `pre-dump` or `dump` finds it by
// that name, and asks it for the next round, or the last.
// It ends, with the tracking, when the root task ends, when a `dump` has had the last round, at `migrate untrack`, or
// when nobody asked for an hour (--track-timeout). If it dies, its userfaultfds close and the tree runs on untracked:
// the next command finds nobody, and stores everything. It knows the folder that its rounds stand in by the folder's
// run id (image_chain.h): a command that names another one as the previous folder gets everything, not what was written
// since.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>

#include "core/base/fd.h"
#include "core/base/log.h"

namespace migrate::cli {

inline constexpr const char* kTrackFolder = "/run/migrate";

/// "track-4026531836-42.sock"
std::string track_socket_name(pid_t root);

struct TrackKeeperOptions {
  pid_t root = 0;
  int listener = -1;  ///< bound and listening
  std::chrono::seconds idle{3600};
};
/// The keeper's life; returns its exit code. Removes its socket, and the folder if it is empty.
int run_track_keeper(const TrackKeeperOptions& options, Logger& log);

}  // namespace migrate::cli
