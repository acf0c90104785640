// What the session layer wants from the core: the tree that is sent, the tree that is received, and either of them by
// its journal alone, when the process that made it is dead. Interfaces, so that the hand-over is tested with fakes.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/dump/dump.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/memory/page_io.h"
#include "core/memory/tree_layout.h"
#include "core/restore/restore.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// A tree at the source, in the hands of its guardian. One thread only: it is the tracer.
class HeldTree {
 public:
  virtual ~HeldTree() = default;
  /// Stops and describes the tree. Refusal or Error leave it running untouched.
  virtual void stop() = 0;
  /// Puts it into a cgroup of ours, freezes that and stops tracing: from here on it needs nobody. On failure all is
  /// as after stop().
  virtual FreezerCgroup::Record hold(const std::string& cgroup_name) = 0;
  /// Lets the tree run on from whatever was reached. Says which locks it could not have again, a sentence each.
  virtual std::vector<std::string> run_on() = 0;
  virtual std::vector<TaskId> tasks() const = 0;
  virtual const ImageSet& images() const = 0;
  virtual std::vector<PageSource>& memories() = 0;
  /// Dump::lazy_pages(), with DumpOptions::lazy.
  virtual const PagesByMemory& lazy_pages() const = 0;
  /// Dump::left_behind().
  virtual std::vector<IpcObject> left_behind() const { return {}; }
  /// Dump::locks().
  virtual std::vector<HeldLock> locks() const { return {}; }
  /// Between stop() and hold(): lets the tree give them up; run_on() takes them again. Throws Refusal if somebody else
  /// waits for one.
  virtual void give_up_locks(const std::vector<HeldLock>& locks) = 0;
  /// CLOCK_MONOTONIC, ns, when the tree began to stop: from then on it stands still.
  virtual int64_t stopping_since_ns() const = 0;
  /// Dump::look_again(); after hold().
  virtual void look_again() {}
  /// Throws Error if images() turned out to be wrong (Dump::check_foreseen()); before the commit.
  virtual void check() {}
};

/// Where pages are to go.
struct Room {
  std::vector<FillTarget> targets;  ///< all of them, in place of earlier ones
  std::vector<MemoryId> cold;       ///< memories of which nothing is there (after rounds)
};

/// A tree being built at the destination, in the hands of its guardian.
class RestoredTree {
 public:
  virtual ~RestoredTree() = default;
  /// Makes the gate; journaled before anything is put into it.
  virtual FreezerCgroup::Record make_gate(const std::string& cgroup_name) = 0;
  /// Makes room for a tree that still runs at the source; repeated as that changes, before prepare().
  virtual Room warm(const TreeLayout& layout) = 0;
  /// Gives back pages that came in earlier rounds and exist no more.
  virtual void discard_pages(std::span<const PageDiscard> discards) = 0;
  /// Makes pages of zeros ready to be filled; after warm(), before prepare().
  virtual void reserve_pages(std::span<const PageReserve> pages) = 0;
  virtual Room prepare(const ImageSet& images) = 0;
  /// Restore::memory_bytes(); at any time.
  virtual uint64_t memory_bytes() = 0;
  /// `missing`: pages that come when it runs. They must be somebody's before the gate opens: take_lazy_memories().
  virtual void finish(const PagesByMemory& missing) = 0;
  virtual std::vector<LazyMemory> take_lazy_memories() { return {}; }
  virtual void open_gate() = 0;
  /// When open_gate() failed: from now on a keeper that thaws the gate is enough.
  virtual void leave_alone() noexcept {}
  virtual void discard() = 0;
  virtual std::vector<TaskId> tasks() const = 0;
  virtual std::optional<TaskId> init() const = 0;
};

/// Acts on a session's tree by what its journal says. Every call may be repeated, and finds less to do then.
class TreeKeeper {
 public:
  virtual ~TreeKeeper() = default;
  /// Whether a task of the journal still lives (false after a reboot).
  virtual bool lives(const JournalEntry& entry) = 0;
  /// Source: thaws and moves the tasks back to their cgroups, with the locks that they gave up. Says which could not be
  /// had again, a sentence each.
  virtual std::vector<std::string> run_on(const JournalEntry& entry) = 0;
  /// Source: kills the held tree and removes what is ours.
  virtual void kill(const JournalEntry& entry) = 0;
  /// Destination: thaws the gate.
  virtual void open_gate(const JournalEntry& entry) = 0;
  /// Destination: kills the copy, its init and everything of ours.
  virtual void discard(const JournalEntry& entry) = 0;
  /// Destination, after the gate opened: takes the tasks out of the gate's cgroup and removes it.
  virtual void leave_gate(const JournalEntry& entry) = 0;
};

std::unique_ptr<HeldTree> dump_tree(DumpOptions options, Logger& log);
std::unique_ptr<RestoredTree> restore_tree(RestoreOptions options, Logger& log);
std::unique_ptr<TreeKeeper> cgroup_keeper(Logger& log);

}  // namespace migrate
