// Which pages of a running tree were written since they were last sent (dirty tracking).
//
// PAGEMAP_SCAN with asynchronous write protection (Linux 6.7): each task is visited once, to make a userfaultfd in it
// that we take over; mappings are registered and scanned from outside, while it runs. On kernels that only have them:
// soft-dirty bits, for which the tree is stopped while each round reads them. What they cannot see is not guessed:
// private copies of file pages and shared memory are compared by content, or left to the last round
// (core/memory/README.md).
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/inject/harvest.h"
#include "core/memory/mapping_reader.h"
#include "core/memory/page_io.h"
#include "core/memory/page_runs.h"
#include "core/memory/track_rules.h"
#include "core/memory/tree_layout.h"
#include "core/task/restart.h"

namespace migrate {

class TrackBackend;

class DirtyTracker {
 public:
  struct Options {
    Pid root;
    std::chrono::milliseconds timeout{10'000};  ///< for a task to stop for its visit
    /// Shared memory (anonymous and memfds; the id is the inode number) and private copies of file pages take part in
    /// rounds: compared by content, snapshots sent.
    bool by_content = false;
    std::shared_ptr<TrackBackend> backend{};          ///< null: the best that the kernel has
    std::shared_ptr<const MappingReader> mappings{};  ///< null: MappingReader::best()
    FaultHook visit_hook{};  ///< called at each stage of the visits (core/inject/harvest.h): for tests
    TrackRules rules{};      ///< for tests
  };
  /// Empty if this kernel and tree can be tracked, else why not, in one sentence ("task 42 has a userfaultfd of its
  /// own").
  static std::string cannot_track(Pid root, const MappingReader& mappings);

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
    uint64_t compared_pages = 0;                          ///< by content
    std::chrono::microseconds last_compare{};             ///< what the last round will take to compare them again
    std::chrono::microseconds scan_time{}, visit_time{};  ///< visit: tasks were stopped
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
    PagesByMemory written;                     ///< since the scan before, and more that does not exist; of tasks
    uint64_t pages = 0;                        ///< left to send
    std::chrono::microseconds scan_time{};     ///< of all
    std::chrono::microseconds compare_time{};  ///< of that, by content
  };
  Last last_round(std::vector<PageSource>& all);
  /// The visits to the tasks that live, in order: time-outs that ran meanwhile need them (DumpOptions::stops).
  std::vector<StopMark> stops() const;
  /// Of the leaders that were visited, where there are any: PR_GET_SECUREBITS by pid.
  std::map<pid_t, uint32_t> securebits() const;
  /// The destination has lost what it had of `memory`: all its pages count as not sent.
  void forget(MemoryId memory);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrate
