// The lazy-pages daemon as something that no single process is: when the process that serves is killed, another goes
// on.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/fd.h"
#include "lazypages/lazy_memories.h"

namespace migrate {

struct HostMemory;

struct HoldOptions {
  /// Descriptors that serve() finds by name; all others but 0, 1 and 2 are closed.
  std::map<std::string, Fd> kept;
  /// In each process at its place: 0 the one that serves (also when a holder becomes it, which waits for this), 1 and 2
  /// the holders. Without threads; may take its time in a holder; opens and closes no descriptor. What it throws is
  /// told and does no harm. A process keeps its `seat`, 0 to 2, and no two that live have the same: so it is not moved,
  /// to a cgroup of the seat, say, when its place changes.
  std::function<void(unsigned place, unsigned seat)> placed;
  /// What the user should know, a sentence each.
  std::function<void(const std::string& sentence)> say;
  /// Of processes that end soon after they took over: after `burst` of them another waits so long before it serves.
  std::chrono::milliseconds pace{50};
  unsigned burst = 20;
  /// Called at each named step, by tests which kill there.
  std::function<void(const char* name)> step;
};

/// What the host keeps, as a descriptor that may be closed. Throws Error.
Fd duplicate(int kept);

/// What serve() has. Any thread may call anything; only what is told to it here is there for the next process.
class LazyHost {
 public:
  LazyHost(HostMemory& memory, std::shared_ptr<LazyRecord> record) : memory_(memory), record_(std::move(record)) {}

  /// 0 in the first process that serves.
  unsigned generation() const;

  /// Both holders are gone, and only serve() can have them made again: by joining its threads and returning soon. It is
  /// called again, as the next generation. To be asked now and then, about 2 us; it reaps holders, too.
  bool alone() const;

  /// Both holders have been through HoldOptions::placed.
  bool all_placed() const;

  /// Once; the memories are ours when this returns, or were never (it threw, or the process was killed: then their
  /// descriptors are closed here; whoever sent them has theirs still, and sends them again).
  std::unique_ptr<LazyMemories> adopt(std::vector<LazyMemory> memories, LazyMemories::Wanted wanted);
  bool adopted() const { return record_->outlasts(); }
  /// What a process before this one adopted. Destroyed without finish() or poison(), nothing is given back.
  std::unique_ptr<LazyMemories> memories(LazyMemories::Wanted wanted);

  /// A descriptor for this process and all after it. The one that had this name is closed.
  void keep(std::string_view name, Fd fd);
  /// It stays the host's. -1: none of this name.
  int kept(std::string_view name) const;
  void drop(std::string_view name);

  /// Bytes for this process and all after it, all or nothing of a change.
  static constexpr size_t kMostRemembered = 64 << 10;
  void remember(std::span<const std::byte> bytes);
  std::vector<std::byte> remembered() const;

 private:
  HostMemory& memory_;
  std::shared_ptr<LazyRecord> record_;
  mutable std::mutex mutex_;
};

/// Makes this process, freshly executed and without threads, the first of a lazy host: it and two holders share one
/// table of descriptors, so that any one of them may be killed at any time, and again when another has followed.
///
/// serve() runs in this process; when that is killed, or serve() throws, in another, a copy of this one as it is now:
/// what serve() refers to must have been made before, and own no descriptor. It may start threads, which must be joined
/// when it returns; it must not fork a process that lives on without execve(2). It returns when all memories have been
/// given back (then all leave), or when it is alone(). Never returns: the process that served last exits with 0.
///
/// Throws Error if it cannot begin. Orphaned processes must be reaped by somebody (init, or a subreaper).
[[noreturn]] void hold_lazily(HoldOptions options, const std::function<void(LazyHost&)>& serve);

}  // namespace migrate
