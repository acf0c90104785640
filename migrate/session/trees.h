// What the session layer wants from the core: the tree that is sent, the tree that is received, and either of them by
// its journal alone, when the process that made it is dead. Interfaces, so that the hand-over is tested with fakes.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/dump/dump.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/memory/page_io.h"
#include "core/restore/restore.h"
#include "migrate/session/journal.h"

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
  /// Lets the tree run on from whatever was reached.
  virtual void run_on() = 0;
  virtual std::vector<TaskId> tasks() const = 0;
  virtual const ImageSet& images() const = 0;
  virtual std::vector<PageSource>& memories() = 0;
  virtual std::chrono::microseconds freezing_time() const = 0;
};

/// A tree being built at the destination, in the hands of its guardian.
class RestoredTree {
 public:
  virtual ~RestoredTree() = default;
  /// Makes the gate; journaled before anything is put into it.
  virtual FreezerCgroup::Record make_gate(const std::string& cgroup_name) = 0;
  virtual std::vector<FillTarget> prepare(const ImageSet& images) = 0;
  virtual void finish() = 0;
  virtual void open_gate() = 0;
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
  /// Source: thaws and moves the tasks back to their cgroups.
  virtual void run_on(const JournalEntry& entry) = 0;
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
