// Dumping a tree: everything but the page contents goes into an ImageSet, the pages are offered as PageSources.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/held_lock.h"
#include "core/base/log.h"
#include "core/base/tree_options.h"
#include "core/files/advice.h"
#include "core/freeze/stopped_tree.h"
#include "core/image/image_set.h"
#include "core/ipc/sysv_objects.h"
#include "core/memory/mapping_reader.h"
#include "core/memory/page_io.h"
#include "core/memory/page_runs.h"
#include "core/task/restart.h"

namespace migrate {

struct DumpOptions : TreeOptions {
  Pid root;
  bool terminals = true;               ///< with shell_job: a terminal is no obstacle, since the restore has one
  bool allow_outside_session = false;  ///< the destination makes session leaders where they are missing
  Advice advice = Advice::none;        ///< which TreeOptions the user can set: refusals advise to
  /// Taken by Dump::survey_sleeps() before visits that stop threads (DirtyTracker), so that time-outs that began before
  /// them end when they should.
  std::shared_ptr<const SleepSurvey> earlier_sleeps;
  std::vector<StopMark> stops;  ///< the visits since then
  bool tracked = false;         ///< write protection by userfaultfd that is found is our own (DirtyTracker)
  /// The flags of large tasks' mappings are read before the tree is stopped, for a shorter freeze; then the images may
  /// be relied on only after check_foreseen().
  bool foresee_mappings = false;
  bool lazy = false;                              ///< lazy_pages() is wanted
  bool lazy_shared = false;                       ///< with those of shared memory
  std::shared_ptr<const MappingReader> mappings;  ///< null: MappingReader::best(), found out each time
  std::chrono::milliseconds timeout{10'000};
  std::function<void()> before_stop;  ///< called right before the first thread is stopped; must not throw
  std::function<void(const char* stage)> visit_hook;  ///< for tests: FaultHook of core/inject/harvest.h; must not throw
};

/// Times in microseconds, counts in pages; written to stats-dump.
struct DumpStats {
  /// CLOCK_MONOTONIC, ns, when the first thread was stopped. Not written.
  int64_t stopping_since_ns = 0;
  uint64_t freezing_time = 0, frozen_time = 0, memdump_time = 0, memwrite_time = 0;
  uint64_t pages_scanned = 0, pages_written = 0, pages_in_parent = 0, pages_lazy = 0;
};

/// A tree, stopped and described. The calling thread is its tracer (see StoppedTree). Destroying it lets the tree run
/// on exactly as it was.
class Dump {
 public:
  /// Looks at the running tree and throws Refusal for what can be seen not to work, without touching anything.
  static void preflight(const DumpOptions& options, Logger& log);
  /// Which threads of the running tree sleep in which calls, and since when.
  static std::shared_ptr<const SleepSurvey> survey_sleeps(Pid root);
  /// Stops, harvests and describes the tree. Throws Refusal or Error with the tree running on untouched.
  Dump(const DumpOptions& options, Logger& log);
  ~Dump();
  Dump(Dump&&) noexcept;

  StoppedTree& tree();
  /// Everything but pages, stats and pagemaps.
  ImageSet& images();
  /// Its System V objects that live on when it is killed (remove_left_behind()).
  std::vector<IpcObject> left_behind() const;
  /// Its locks on files.
  const std::vector<HeldLock>& locks() const;
  /// The images are stored: names that were made for them (link_remap) stay when this goes.
  void keep_links() noexcept;
  /// The tree was killed: its connections with itself end without a word, and their ports are free.
  void tree_is_dead() noexcept;
  /// All memories of the tree; valid as long as the tree is stopped or frozen and this object lives. Readable from any
  /// thread.
  std::vector<PageSource>& memories();
  /// With `lazy`: addresses whose pages may come after the program runs again at its destination (lazy_pages.h).
  const PagesByMemory& lazy_pages() const;
  DumpStats& stats();
  /// With `foresee_mappings`: begins the second look at the mappings, in a thread of its own. It walks all page tables
  /// and holds their locks, so it should not begin while somebody else scans them.
  void look_again();
  /// Waits for the second look, begun here at the latest, and throws Error if flags (madvise, mlock) changed between
  /// the first and the stop. Any thread, once; the tree must still be stopped or frozen. Else it does nothing.
  void check_foreseen();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes pages-N.img and the pagemap images of all memories into `dirfd` (pagemaps go through `images`).
void write_page_images(Dump& dump, int dirfd);
/// Adds stats-dump to `images`.
void write_dump_stats(const DumpStats& stats, int dirfd);

}  // namespace migrate
