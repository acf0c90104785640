// Which pages of a running tree were written since they were last sent (dirty tracking), without stopping it.
//
// PAGEMAP_SCAN with asynchronous write protection (Linux 6.7): each task is visited once, to make a userfaultfd in it
// that we take over; mappings are registered and scanned from outside. What it cannot see is not guessed: file-private
// memory is left to the last round, shared anonymous memory is compared by content (core/memory/README.md).
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/memory/page_io.h"
#include "core/memory/track_rules.h"
#include "core/memory/tree_layout.h"

namespace migrate {

class DirtyTracker {
 public:
  struct Options {
    Pid root;
    std::chrono::milliseconds timeout{10'000};  ///< for a task to stop for its visit
    /// Shared anonymous memory takes part in rounds (compared by content, snapshots sent); its id is its inode number.
    bool shared_anonymous = false;
    TrackRules rules{};  ///< for tests
  };
  /// Empty if this kernel and tree can be tracked, else why not, in one sentence ("task 42 has a userfaultfd of its
  /// own").
  static std::string cannot_track(Pid root);

  DirtyTracker(const Options& options, Logger& log);
  /// Ends the tracking without a trace: unregistered, huge pages put back. Works on running, stopped, frozen and dead
  /// trees.
  ~DirtyTracker();

  struct Round {
    TreeLayout layout;
    std::vector<PageSource> sources;    ///< to be sent now; /proc/PID/mem of the running tasks
    std::vector<PageDiscard> discards;  ///< sent before, gone since
    uint64_t pages = 0;                 ///< in sources
    uint64_t tracked_pages = 0;         ///< present in tracked memory
    /// Pages that only the last round can send: private copies of file pages, and shared objects.
    uint64_t untracked_private_pages = 0, untracked_shared_pages = 0;
    uint64_t compared_shared_pages = 0;  ///< of shared objects that take part: read again by the last round
    std::chrono::microseconds scan_time{}, visit_time{};
  };
  /// One round while the tree runs: new tasks and mappings are taken in, and all pages written since the round before
  /// (at first: all) are returned, re-protected before they are read, so that no write is missed. A page whose reading
  /// fails because it vanished meanwhile is found again by the next round. Same thread each time (it is the tracer in
  /// visits). Throws Error (tree gone, a task does not stop) with the tree running on.
  Round next_round();
  /// The round that next_round() returned last will not be sent: its pages count as written, and its discards are told
  /// again.
  void put_back(const Round& round);
  /// The last round, with the tree stopped or frozen. `all` is everything that exists (Dump::memories(), the same ids);
  /// on return it is reduced to what must still be sent.
  struct Last {
    std::vector<PageDiscard> discards;
    uint64_t pages = 0;  ///< left to send
    std::chrono::microseconds scan_time{};
  };
  Last last_round(std::vector<PageSource>& all);
  /// The destination has lost what it had of `memory`: all its pages count as not sent.
  void forget(MemoryId memory);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrate
