// The source's tree as its agent holds it: through its guardian while that lives, else by taking over the journal.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "migrate/session/base/options.h"
#include "migrate/session/guardian/guardian.h"

namespace migrate {

/// What the source's guardian hands over.
struct FrozenTree {
  std::vector<std::byte> images;  ///< packed
  std::vector<PageSource> memories;
  PagesByMemory lazy_pages;       ///< that may come late, if it was started so
  int64_t stopping_since_ns = 0;  ///< CLOCK_MONOTONIC
};

class SourceHold {
 public:
  SourceHold(JournalStore& store, TreeKeeper& keeper, const Guardian::Spawn& spawn, Timeouts timeouts, Logger& log);

  /// Throws Refusal or Error with nothing touched.
  void start(const wire::GuardianRequest::StartSource& request);
  /// `stops`: the tracker's visits; `shared_devices`: PeerQuestions::shared_devices(). Throws with the tree running on.
  FrozenTree freeze(const std::vector<StopMark>& stops = {}, const std::set<uint64_t>& shared_devices = {});
  /// The tree will probably be stopped within some ten milliseconds: the guardian may prepare for it.
  void freeze_is_near();
  /// The guardian may begin what it put off for the sake of a short freeze (HeldTree::look_again).
  void look_again();
  /// Sends the heartbeat, and throws if the guardian gave up or died (the tree runs on then, see abort()).
  void alive();
  /// The heartbeat alone; what has become of the guardian shows later.
  void stay() noexcept;
  /// After the commit: as alive(), but when the guardian is gone the journal becomes ours.
  void heartbeat() noexcept;
  /// Whether a task of the frozen tree still lives.
  bool tree_lives() const;
  /// As its journal says now.
  std::optional<JournalEntry> entry() const { return store_.peek(id_, Role::source); }
  /// The source is committed when this returns. Throws with the tree running on, unless `committed()` says otherwise.
  void commit();
  /// Kills the tree after the gate opened.
  void kill();
  /// Lets the tree run on; false if that is not for this side to decide any more (committed).
  bool abort(const std::string& reason);
  /// After commit, with the destination not heard: leaves the tree frozen and makes the journal ours.
  std::optional<Journal> take_over();

  /// The tree gave up locks for the copy, which has them until it is given up.
  bool gave_up_locks() const { return gave_up_locks_; }
  bool committed() const { return committed_; }
  bool started() const { return started_; }
  uint64_t epoch() const { return epoch_; }
  const SessionId& id() const { return id_; }
  std::optional<int> death_fd() const { return guardian_ ? std::optional(guardian_->death_fd()) : std::nullopt; }

 private:
  /// The guardian is dead, or does not answer: makes sure of it and takes the journal.
  Journal& succeed_guardian();
  void leave_guardian();

  JournalStore& store_;
  TreeKeeper& keeper_;
  Timeouts timeouts_;
  Logger& log_;
  SessionId id_{};
  uint64_t epoch_ = 1;
  bool started_ = false;
  bool committed_ = false;
  bool lazy_ = false;
  bool gave_up_locks_ = false;
  Guardian::Spawn spawn_;
  std::optional<Guardian> guardian_;
  std::optional<Journal> journal_;  ///< after the guardian
};

/// Settles a source session that nobody owns and that is not committed: takes it over, writes ABORTED and lets the tree
/// run on, the latter also if the disk is full. Refusal if somebody owns or committed it.
void abort_source(JournalStore& store, TreeKeeper& keeper, const JournalEntry& seen, const std::string& reason,
                  Logger& log);

}  // namespace migrate
