// The source agent's session, step by step as in README.md. Its code is in three files: send_prepare.cpp (nothing is
// touched), send.cpp (freeze to report), send_settle.cpp (when it fails). What becomes of the memory is its plan's
// (memory_plan.h). One thread, besides the page workers.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "migrate/session/base/session.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/handover/source_hold.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/source/memory_plan.h"
#include "migrate/session/source/peer_questions.h"
#include "migrate/session/source/source_peer.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/clocks.h"

namespace migrate {

class SendSession {
 public:
  SendSession(const SendOptions& options, Events& events, InterruptWatch& interrupt, Logger& log);
  /// The whole migration; gives the exit code. Failures are events, not exceptions.
  int run();

 private:
  using Clock = std::chrono::steady_clock;
  using Message = wire::Message;

  // Nothing is touched.
  void look_before_touching();
  void compare_clocks();
  void begin();
  void tell_huge_pages();

  // The tree is held.
  void freeze();
  void limit_downtime();
  void send_images();
  void send_pages();
  void await_ready();
  void commit();
  void await_gate();
  void reset_dropped();
  void kill_source();
  void report();
  /// The tree was stopped, if only for a moment.
  bool touched() const { return touched_ || (plan_ && plan_->touched()); }

  // When it fails.
  /// Before commit: the tree runs on, and the destination is told.
  int give_up(const std::exception& e);
  /// Of what it had given up: to go on a sentence that it runs on here.
  std::string what_it_lacks() const noexcept;
  void tell_peer(const std::string& reason) noexcept;
  /// Before the tree runs on with them: the copy has the locks that it gave up.
  void free_locks_there(const std::string& reason, uint64_t epoch) noexcept;
  /// Throws if the peer does not answer that it has given up the copy.
  void abort_there(const std::string& reason);
  /// Either answer says that the destination holds nothing of the session. Earlier messages may be on their way still.
  void await_aborted();
  /// After commit: asks the destination's journal; nothing is guessed.
  int in_doubt(const std::string& reason);
  /// In the middle of the feed: the watch goes on.
  int leave_feed(const std::string& reason);

  const SendOptions& options_;
  Events& events_;
  InterruptWatch& interrupt_;
  Logger& log_;
  Pid target_;
  Connector connector_;
  JournalStore store_;
  std::unique_ptr<TreeKeeper> keeper_;
  SourceHold hold_;
  std::optional<SessionWatch> watch_;
  AskDestination ask_;
  DumpOptions dump_;
  std::string label_;
  SessionId id_{};
  TreeClocks clocks_;
  SourcePeer peer_;
  PeerQuestions questions_;
  std::unique_ptr<MemoryPlan> plan_;
  bool begun_ = false;    ///< the destination may know the session
  bool touched_ = false;  ///< the tree was stopped to be moved
  bool undone_ = false;   ///< ... once, and refused for what only that could tell
  bool told_ = false;     ///< the destination has given up its copy
  FrozenTree tree_;
  PageTotals sent_;  ///< while it stood still
  MoveTimes times_;
};

}  // namespace migrate
