// The two ways of telling which pages were written, behind one interface: asynchronous write protection (track_task)
// and soft-dirty bits (soft_dirty).
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/inject/harvest.h"
#include "core/memory/mapping_reader.h"
#include "core/memory/track_objects.h"
#include "core/memory/track_rules.h"
#include "core/memory/track_set.h"
#include "core/memory/track_tree.h"
#include "core/memory/tree_layout.h"
#include "core/task/restart.h"

namespace migrate {

/// The private memory of one task.
class TaskTracker {
 public:
  TaskTracker() = default;
  TaskTracker(const TaskTracker&) = delete;
  TaskTracker& operator=(const TaskTracker&) = delete;
  virtual ~TaskTracker() = default;

  /// Whether the process has ended (its number may be another's by now).
  bool ended() const { return ends_within(std::chrono::milliseconds(0)); }
  virtual bool ends_within(std::chrono::milliseconds time) const = 0;
  /// Whether what visit() prepared is for the memory that the task has now (exec gives it another).
  virtual bool memory_is_current() const = 0;
  /// Prepares to track its present memory, of which nothing is known yet. False: it is not tracked (for a reason that
  /// is logged once a memory). Throws Error when the task does not stop where it has to, Refusal when it cannot be
  /// moved.
  virtual bool visit(std::chrono::milliseconds timeout, const FaultHook& hook, Logger& log) = 0;
  virtual bool visited() const = 0;

  struct Scan {
    std::vector<TreeLayout::Area> areas;  ///< of private files: those that have copies
    PageSet written;                      ///< since the scan before; all there is in mappings that are new
    PageSet existing;                     ///< in tracked mappings, seen after `written`
    PageSet copies;                       ///< the task's own copies of file pages: whether written is not known
    uint64_t left_pages = 0;              ///< others, which only the last round can send
  };
  /// Tells what was written, and begins to watch for the next time. nullopt: the memory was left meanwhile (exec,
  /// exit). If this throws, what was written is not known any more.
  virtual std::optional<Scan> scan(const TrackRules& rules, const FaultHook& hook) = 0;
  /// Those of `known` that were not written since the scan before, if they still exist; into `written` goes what was
  /// found written, and more that does not exist. Touches nothing.
  virtual PageSet clean(const PageSet& known, PageSet& written) const = 0;
  /// How often visit() stopped a thread and made it run.
  virtual std::vector<StopMark> stops() const { return {}; }
  /// PR_GET_SECUREBITS of its leader, that only a visit can tell.
  virtual uint32_t securebits() const { return 0; }
  /// A descriptor to read the tracked memory from.
  virtual Fd memory() const = 0;
};

class TrackBackend {
 public:
  TrackBackend() = default;
  TrackBackend(const TrackBackend&) = delete;
  TrackBackend& operator=(const TrackBackend&) = delete;
  virtual ~TrackBackend() = default;

  /// What has to be held while tasks are scanned: a stopped tree, or nothing (null).
  class Pause {
   public:
    Pause() = default;
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;
    virtual ~Pause() = default;
  };
  virtual std::unique_ptr<Pause> pause() { return nullptr; }
  /// As list_living(); waits a little for a root that is executing a program. Throws Error (ESRCH).
  virtual std::vector<LivingTask> living() = 0;
  virtual std::vector<LivingObject> shared_objects(const std::vector<LivingTask>& living) = 0;
  /// Throws Error (ESRCH, ENOENT) if there is no such task any more.
  virtual std::unique_ptr<TaskTracker> task(pid_t pid) = 0;
};

/// The best that this kernel has (probe_dirty_tracking()). Throws Refusal if it has none.
std::unique_ptr<TrackBackend> make_track_backend(Pid root, std::chrono::milliseconds timeout,
                                                 std::shared_ptr<const MappingReader> mappings, Logger& log);

}  // namespace migrate
