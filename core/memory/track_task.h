// One task of a tree whose memory is being tracked: its userfaultfd, and what its scans tell.
#pragma once

#include <linux/userfaultfd.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/kernel_abi.h"
#include "core/base/log.h"
#include "core/base/procfs.h"
#include "core/memory/track_rules.h"
#include "core/memory/track_set.h"
#include "core/memory/tree_layout.h"
#include "core/memory/vma.h"

namespace migrate {

/// Features of the userfaultfd that tracking needs. Without WP_UNPOPULATED private anonymous memory cannot be scanned.
inline constexpr uint64_t kTrackFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                           UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;

class TrackedTask {
 public:
  /// Throws Error (ESRCH, ENOENT) if there is no such task any more.
  explicit TrackedTask(pid_t pid);
  ~TrackedTask();
  TrackedTask(const TrackedTask&) = delete;
  TrackedTask& operator=(const TrackedTask&) = delete;

  pid_t pid() const { return pid_; }
  /// Whether the process has ended (its number may be another's by now).
  bool ended() const { return ends_within(std::chrono::milliseconds(0)); }
  bool ends_within(std::chrono::milliseconds time) const;
  /// Whether the descriptors held here are those of the memory that the task has now (exec gives it another).
  bool memory_is_current() const;

  /// Stops the task for a moment and takes over a userfaultfd for its present memory. False: none can be made there
  /// (for a reason that is logged once a memory); its memory is not tracked then. Throws Error when the task does not
  /// stop.
  bool visit(std::chrono::milliseconds timeout, Logger& log);
  bool visited() const { return static_cast<bool>(uffd_); }

  struct Scan {
    std::vector<TreeLayout::Area> areas;
    PageSet written;                  ///< since the scan before; all there is in mappings that are new
    PageSet existing;                 ///< in tracked mappings, seen after `written`
    uint64_t file_private_pages = 0;  ///< the task's own copies of file pages: not tracked
  };
  /// Registers what is new, scans and protects. nullopt: the memory was left meanwhile (exec, exit). If this throws,
  /// what was written is not known any more.
  std::optional<Scan> scan(const TrackRules& rules);
  /// The pages that were not written since the scan before, without touching anything.
  PageSet clean() const;

  /// A shared object without a name (memfd, shared anonymous memory) that the last scan saw mapped.
  struct SharedObject {
    uint64_t inode = 0;  ///< on the kernel's internal tmpfs
    bool memfd = false;
    std::string link;  ///< in the task's /proc folder
    auto operator<=>(const SharedObject&) const = default;
  };
  const std::vector<SharedObject>& shared_objects() const { return shared_; }
  /// Opened to read; nullopt: it is no longer mapped there.
  std::optional<Fd> open_shared(const SharedObject& object) const;

  /// A descriptor to read the tracked memory from.
  Fd memory() const { return mem_.dup(); }
  /// Unregisters everything and puts huge pages back.
  void end();

 private:
  struct Identity {
    uint64_t start_code = 0, start_data = 0, start_stack = 0, arg_start = 0, env_start = 0;
    bool operator==(const Identity&) const = default;
  };
  Identity identity() const;
  void read_mappings();
  std::optional<PageSet> scan_mapping(const Vma& vma, const TrackRules& rules);
  bool register_mapping(const Vma& vma);
  PageSet take_back_registrations();
  void collapse_split_pages() const;

  pid_t pid_;
  ProcDir proc_;
  Fd pidfd_;
  Fd uffd_, pagemap_, mem_;  ///< of one memory
  Identity identity_;
  bool cannot_visit_ = false;  ///< that memory
  std::string maps_text_;      ///< that mappings_ was read for
  std::vector<Vma> mappings_;  ///< private anonymous ones
  PageSet file_private_;       ///< addresses of private mappings of files
  std::vector<SharedObject> shared_;
  PageSet registered_;       ///< by the scan that is going on
  PageSet huge_, new_huge_;  ///< mapped by huge pages when they were protected; by the scan that is going on
};

}  // namespace migrate
