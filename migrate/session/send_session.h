// The source agent's session, step by step as in README.md. Its code is in four files: send_prepare.cpp (nothing is
// touched), send_rounds.cpp (pre-copy), send.cpp (freeze to report) and send_settle.cpp (when it fails). One thread,
// besides the page workers.
#pragma once

#include <array>
#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/freeze/cpu_throttle.h"
#include "core/memory/dirty_tracker.h"
#include "migrate/policy/precopy_policy.h"
#include "migrate/session/clocks.h"
#include "migrate/session/events.h"
#include "migrate/session/holds.h"
#include "migrate/session/interrupt.h"
#include "migrate/session/inventory.h"
#include "migrate/session/session.h"
#include "migrate/session/settle.h"
#include "migrate/session/watch.h"
#include "pageserver/page_stream.h"

namespace migrate {

class SendSession {
 public:
  SendSession(const SendOptions& options, Events& events, const InterruptWatch& interrupt, Logger& log);
  /// The whole migration; gives the exit code. Failures are events, not exceptions.
  int run();

 private:
  using Clock = std::chrono::steady_clock;
  using Message = wire::Message;
  using milliseconds = std::chrono::milliseconds;

  // Nothing is touched.
  void look_before_touching();
  void connect();
  void compare_clocks();
  void check_there();
  void begin();

  // Pre-copy: the tree runs.
  void choose_mode();
  void rounds();
  void make_room(DirtyTracker::Round& round, unsigned n);
  void send_discards(std::span<const PageDiscard> discards);
  PageTotals send_pass(std::span<const PageSource> sources);
  void tell_pages_done(const PageTotals& totals);
  /// Files and ports that the tree opened since they were last checked.
  void check_news();
  void ask_about(Inventory news);
  TreeSize size_of_tree() const;
  void prepare_throttle(PrecopyPolicy& policy);
  void throttle(PrecopyPolicy& policy, const Decision& decision);
  /// With the tree frozen: what of `memories_` is still to be sent.
  void last_scan();
  /// Memories that the destination has nothing of are sent whole.
  void add_cold(const wire::FillReady& ready);

  // The tree is held.
  void freeze();
  void send_images();
  void send_pages();
  void await_ready();
  void commit();
  void await_gate();
  void kill_source();
  void report();

  Deadline answer_by() const { return Deadline::in(options_.timeouts.answer); }
  /// Waits up to `time` for the peer, telling the guardian that we live; throws if the guardian, the peer or the user
  /// ends it, or until `wake` is readable. Returns whether the peer has something to say.
  bool watch(milliseconds time, int wake = -1);
  /// While pages flow the peer has only bad news.
  void throw_peer_news();
  Message wait_for(Message::BodyCase kind, milliseconds time);
  void show_progress();
  /// Keeps what the parts of the downtime took, for the estimates of later moves to that host.
  void learn_costs() const;

  // When it fails.
  /// Before commit: the tree runs on, and the destination is told.
  int give_up(const std::exception& e);
  void tell_peer(const std::string& reason) noexcept;
  void note_peer_settled();
  /// Either answer says that the destination holds nothing of the session. Earlier messages may be on their way still.
  void await_aborted();
  /// After commit: asks the destination's journal; nothing is guessed.
  int in_doubt(const std::string& reason);

  const SendOptions& options_;
  Events& events_;
  const InterruptWatch& interrupt_;
  Logger& log_;
  Pid target_;
  HostPort address_;
  Connector connector_;
  JournalStore store_;
  std::unique_ptr<TreeKeeper> keeper_;
  SourceHold hold_;
  std::optional<SessionWatch> watch_;
  AskDestination ask_;
  DumpOptions dump_;
  Inventory inventory_;
  std::string label_;
  SessionId id_{};
  TreeClocks clocks_;
  std::optional<ControlChannel> channel_;
  std::optional<PageSender> sender_;
  bool begun_ = false;           ///< the destination may know the session
  bool touched_ = false;         ///< the tree was stopped
  std::future<void> synced_;     ///< the files that the tree writes; its destructor waits
  std::future<Inventory> news_;  ///< of the frozen tree, likewise
  std::vector<std::byte> images_;
  std::vector<PageSource> memories_;
  bool precopy_ = false;
  std::set<MemoryId> in_rounds_;  ///< that the last round's layout named
  std::optional<DirtyTracker> tracker_;
  std::unique_ptr<Throttle> throttle_;
  std::map<MemoryId, std::vector<PageRun>> all_runs_;  ///< of the frozen tree, before the tracker reduced them
  FixedCost fixed_cost_;
  double round_trip_seconds_ = 0.001;
  Decision last_decision_;
  unsigned rounds_ = 0;
  uint64_t rounds_bytes_ = 0;
  bool passing_ = false;  ///< pages are on their way
  uint64_t bytes_before_pass_ = 0;
  uint64_t pages_total_ = 0, bytes_sent_ = 0;
  Clock::time_point rounds_began_, pass_began_;
  Clock::time_point freeze_began_, frozen_, shells_ready_, pages_sent_, ready_, opened_, last_heartbeat_;
};

}  // namespace migrate
