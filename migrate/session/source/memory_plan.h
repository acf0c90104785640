// How a tree's memory gets to the destination: what happens while the tree runs, when it stands, with the last pages,
// and behind the gate. A plan a mode; the session's steps (send.cpp) are the same for all.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/base/log.h"
#include "core/dump/dump.h"
#include "lazypages/fill_order.h"
#include "migrate/session/base/options.h"
#include "migrate/session/handover/source_hold.h"
#include "migrate/session/source/peer_questions.h"
#include "migrate/session/source/source_peer.h"

namespace migrate {

/// When the parts of a move were done.
struct MoveTimes {
  std::chrono::steady_clock::time_point freeze_began, frozen, shells_ready, pages_sent, ready, opened;
};

/// The program runs at the destination and still needs pages of the frozen tree; we bring them no longer, and others
/// do.
class FeedLeft : public Error {
 public:
  using Error::Error;
};

/// What went before the tree was stopped.
struct RoundTotals {
  unsigned rounds = 0;
  uint64_t bytes = 0, wire_bytes = 0;
};

/// What a plan works with; all outlive it.
struct PlanParts {
  const SendOptions& options;
  const Pid& target;
  const DumpOptions& dump;
  SourcePeer& peer;
  PeerQuestions& questions;
  SourceHold& hold;
  Events& events;
  Logger& log;
};

/// One thread. Every step throws as SourcePeer's waits do.
class MemoryPlan {
 public:
  virtual ~MemoryPlan() = default;

  /// The guardian prepares for visits to the tree.
  virtual bool visits() const { return false; }
  /// The destination is told of the tree's memory before its images come. Once connected.
  virtual bool tells_layouts() const = 0;
  /// Pages come when the program runs at the destination.
  virtual bool is_lazy() const { return false; }
  /// Rounds did not converge, and what is left is to come when the program runs there.
  virtual bool leaves_rest() const { return false; }
  /// The tree was stopped for a moment already.
  virtual bool touched() const { return false; }
  /// The tree runs: until it may be stopped.
  virtual void while_running() = 0;
  /// Seconds for which the tree will stand still, about; nullopt: as long as its memory takes, whatever that is.
  virtual std::optional<double> expected_downtime() const { return std::nullopt; }
  /// The moments for which threads of the tree were stopped so far.
  virtual std::vector<StopMark> stops() const { return {}; }
  /// The tree stands: leaves in `tree.memories` what is to be sent before the gate opens.
  virtual void frozen(FrozenTree& tree) = 0;
  /// The destination has made room by the images, and has nothing of some memories.
  virtual void room_made(const wire::FillReady& ready, std::vector<PageSource>& memories) {
    (void)ready, (void)memories;
  }
  /// Which of `late`, pages that come when the program runs there, will be needed soon; what is left out comes last.
  /// Any thread, once frozen().
  virtual std::vector<RankedRun> fill_order(std::span<const PageSource> late) const {
    (void)late;
    return {};
  }
  /// It runs at the destination: until that needs nothing of the tree here. Throws FeedLeft.
  virtual void after_gate() {}
  /// The tree is about to run on here.
  virtual void before_running_on() noexcept {}

  virtual RoundTotals rounds() const { return {}; }
  /// After a move: remembers what the parts of the downtime took, for the estimates of later moves to that host.
  virtual void learn(const MoveTimes& times) const { (void)times; }
};

/// As the options say, if the tree allows it; else stop-copy, and an event says why.
std::unique_ptr<MemoryPlan> plan_memory(const PlanParts& parts);

}  // namespace migrate
