// Restoring a tree: prepare → fill → finish → gate (core/DESIGN.md). Used by the `restore` command and by the
// destination's guardian. The calling process must be single-threaded: it forks.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/base/types.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/image/image_set.h"
#include "core/memory/page_io.h"

namespace migrate {

struct RestoreOptions {
  bool own_namespaces = false;  ///< new pid, mount and time namespaces with an init of ours, instead of in place
  bool shell_job = false;
  bool tcp_close = false;
  bool sibling = false;         ///< -S: the root becomes a child of our parent
  std::string root;             ///< -r: root folder for all paths; empty: ours
  std::chrono::milliseconds timeout{30'000};
  /// Where the clocks of the moved tree must continue: value of CLOCK_MONOTONIC / CLOCK_BOOTTIME (ns) that the tree
  /// should read at the local CLOCK_MONOTONIC time `at`. Empty: the values in the images, at the time of prepare.
  struct Clocks {
    int64_t monotonic_ns, boottime_ns, at_local_monotonic_ns;
  };
  std::optional<Clocks> clocks;
};

/// How the pages of one memory get into the shell that will become the task. Can be passed to another process: plain
/// values and descriptors.
struct FillTarget {
  MemoryId memory;
  Fd userfaultfd;  ///< for tasks: of the shell's address space, registered over the anonymous staging ranges
  Fd mem;          ///< for tasks: /proc/SHELL/mem, writable (file-private staging); for shmem: the object itself
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

  /// Forks the coordinator and the task shells with their pids and reserves the staging memory. `gate` is the freezer
  /// cgroup the tasks are put in (nullptr: none).
  void prepare(const ImageSet& images, FreezerCgroup* gate);
  /// For fillers in other processes. Each target once.
  std::vector<FillTarget> take_fill_targets();
  /// Fills from pages-*.img in an image folder.
  void fill_from(int image_dirfd);
  /// Builds everything; on return all tasks wait at the gate: with a gate cgroup frozen in it, without tracer; without
  /// one, ptrace-stopped.
  void finish(const ImageSet& images);
  /// Lets the tree run (thaw or detach), then does what the outside may see: listening and the like.
  void open_gate(bool leave_stopped = false);
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
