// Restoring a tree: [warm → fill →]* prepare → fill → finish → gate (core/DESIGN.md). Used by the `restore` command and
// by the destination's guardian. The calling process must be single-threaded: it forks.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/base/tree_options.h"
#include "core/base/types.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/image/image_set.h"
#include "core/memory/lazy_memory.h"
#include "core/memory/page_io.h"
#include "core/memory/page_runs.h"
#include "core/memory/tree_layout.h"
#include "core/memory/tree_survey.h"

namespace migrate {

/// shell_job: in place, sessions and groups that lie outside of the tree are those we run in.
struct RestoreOptions : TreeOptions {
  bool own_namespaces = false;  ///< new pid, mount and time namespaces with an init of ours, instead of in place
  int terminal = -1;            ///< takes the place of the tree's terminal (core/files/terminal.h); stays the caller's
  bool sibling = false;         ///< -S: the root becomes a child of our parent
  bool detached = false;        ///< -d: the root's parent ends before it
  std::string root;             ///< -r: root folder for all paths; empty: ours
  /// Files that no task that has them may open here may be opened by root, where root alone can have put them there
  /// (core/files/task_paths.h). False if the images may be hostile.
  bool files_by_root = true;
  std::string mark;  ///< hidden names of files begin with it; empty: one of our own
  std::chrono::milliseconds timeout{30'000};
  /// Where the clocks of the moved tree must continue: value of CLOCK_MONOTONIC / CLOCK_BOOTTIME (ns) that the tree
  /// should read at the local CLOCK_MONOTONIC time `at`. Empty: the values in the images, at the time of prepare.
  struct Clocks {
    int64_t monotonic_ns, boottime_ns, at_local_monotonic_ns;
  };
  std::optional<Clocks> clocks;
  /// Folders of cgroups, one a hierarchy at most, that the tree is made in; in other hierarchies it is where we are.
  std::vector<std::string> cgroups;
  bool lazy = false;  ///< pages may be left out and come when the tree runs: finish() with `missing`
};

/// How the pages of one memory get into the shell that will become the task. Can be passed to another process: plain
/// values and descriptors.
struct FillTarget {
  MemoryId memory;
  Fd userfaultfd;  ///< for tasks: of the shell's address space, registered over the ranges with copy_by_userfault
  Fd mem;          ///< for tasks: /proc/SHELL/mem, writable (file-private staging); for shmem: the object itself
  Fd process;      ///< for tasks: pidfd of the shell
  struct Range {
    uint64_t address = 0;  ///< final address (tasks) or offset (shmem)
    uint64_t bytes = 0;
    uint64_t staging = 0;  ///< address in the shell, 0: pages may come but are dropped (vdso); for shmem: `address`
    bool copy_by_userfault = false;  ///< else pwrite to `mem` at `staging`
  };
  std::vector<Range> ranges;  ///< ascending, disjoint
};

/// A PageSink over FillTargets. Addresses from a peer are checked against the ranges; a page outside throws Corrupt.
class StagingSink final : public PageSink {
 public:
  explicit StagingSink(std::vector<FillTarget> targets);
  ~StagingSink() override;
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override;
  uint64_t pages_written() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class Restore {
 public:
  Restore(RestoreOptions options, Logger& log);
  ~Restore();  ///< discards, unless opened

  /// Warm fill, while the source still runs. The first call forks the coordinator and a shell a task and makes staging
  /// memory for the layout's areas and objects; later calls follow the tree as it changes, keeping what was filled.
  /// Shells that cannot follow are made anew (root() and init() are then others). Returns the memories that hold
  /// nothing yet or no more: all their pages must come (again). Set RestoreOptions::clocks: there are no images to ask.
  /// Files of areas are opened by their path. `gate` as below, the same each time. Any failure discards everything.
  std::vector<MemoryId> warm(const TreeLayout& layout, FreezerCgroup* gate);
  /// Forks the coordinator and the task shells with their pids and reserves the staging memory. `gate` is the freezer
  /// cgroup the tasks are put in (nullptr: none). After warm(): keeps what was filled, cuts it to the final mappings,
  /// adds the rest.
  void prepare(const ImageSet& images, FreezerCgroup* gate);
  /// After prepare(): the memories that hold nothing of what warm() and fillers brought; without warm(): all.
  const std::vector<MemoryId>& cold() const;
  /// Gives pages back, in staging memory that no filler is writing to: they read as if never written. What is not
  /// staged is passed over: [0, 2^47) empties a memory (an exec, a pid used again). After warm() or prepare().
  void discard_pages(std::span<const PageDiscard> discards);
  /// Makes pages ready to be filled, so that filling need not take memory any more; after warm(), before prepare().
  /// They read as zeros: what is not filled must be discarded. What is not staged is passed over. Any failure, also
  /// that there is not enough memory, discards everything.
  void reserve_pages(std::span<const PageReserve> pages);
  /// What the copy occupies now: private memory of its tasks and their page tables, shared memory objects. Not
  /// counted is what shells have from the process that made them. 0 before anything was made, and when the gate has
  /// opened. Some 20 us a task.
  uint64_t memory_bytes();
  /// For fillers in other processes: all targets as the last warm() or prepare() left them. Each can be taken once;
  /// earlier ones are void.
  std::vector<FillTarget> take_fill_targets();
  /// Fills from pages-*.img in an image folder. With RestoreOptions::lazy it leaves out what the folder marks as such
  /// and may wait; that is returned.
  PagesByMemory fill_from(int image_dirfd);
  /// Builds everything; on return all tasks wait at the gate: with a gate cgroup frozen in it, without tracer; without
  /// one, ptrace-stopped. `missing`: pages of private anonymous memory that were not filled, with RestoreOptions::lazy;
  /// whoever touches one waits until somebody brings it.
  void finish(const ImageSet& images, const PagesByMemory& missing = {});
  /// After finish() with `missing`: the memories that wait for pages, for a lazy-pages daemon. Once. When the last
  /// descriptor of one is closed its missing pages read as zeros.
  std::vector<LazyMemory> take_lazy_memories();
  /// Lets the tree run (thaw or detach), then does what the outside may see: listening and the like.
  void open_gate(bool leave_stopped = false);
  /// After finish(), when open_gate() failed: hangs up. Whoever thaws the gate lets the tree run, and its init does
  /// what the outside may see then.
  void leave_alone() noexcept;
  /// Kills everything made so far; nothing stays behind.
  void discard();

  /// The root task, as the caller's pid namespace numbers it.
  Pid root() const;
  /// All tasks, likewise.
  std::vector<Pid> tasks() const;
  /// The namespaces' init (own_namespaces), else 0.
  Pid init() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrate
