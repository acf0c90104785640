// The source agent's session, step by step as in README.md. Its code is in six files: send_prepare.cpp (nothing is
// touched), send_rounds.cpp (pre-copy), send_reserve.cpp (in place of that, in a move without rounds), send.cpp (freeze
// to report), send_settle.cpp (when it fails), send_codecs.cpp. One thread, besides the page workers.
#pragma once

#include <array>
#include <chrono>
#include <functional>
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
#include "core/memory/tree_survey.h"
#include "migrate/policy/precopy_policy.h"
#include "migrate/session/base/session.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/handover/source_hold.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/loop/waiter.h"
#include "migrate/session/source/inventory.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/clocks.h"
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
  /// What is in the way there.
  std::vector<std::string> ask(wire::Check& check);
  /// Asks about what look() finds. A running tree closes and removes files while they are looked up there, so only what
  /// is in the way twice in a row is (or if something always is).
  std::vector<std::string> ask_twice(const std::function<wire::Check&(int)>& look);
  void begin();

  // Compression and bandwidth limit.
  void agree_on_codecs(const wire::Hello& there);
  void set_up_streams();
  /// What the page streams chose meanwhile, as events.
  void tell_codecs();
  /// The tree stands still: what is left goes as fast as it can.
  void lift_bandwidth_limit();
  /// Bytes of pages a second without the limit; 0: as in the rounds.
  double stopped_bandwidth() const;

  // Pre-copy: the tree runs.
  void choose_mode();
  void rounds();
  void make_room(DirtyTracker::Round& round, unsigned n);
  void send_discards(std::span<const PageDiscard> discards);
  PageTotals send_pass(std::span<const PageSource> sources);
  [[noreturn]] void rethrow_with_peers_reason(const std::exception_ptr& failure);
  void tell_pages_done(const PageTotals& totals);
  /// Files and ports that the tree opened since they were last checked.
  void check_news();
  void ask_about_visits();
  /// Without rounds: the same when the tree stands. Throws Refusal.
  void ask_about_stop();
  void ask_about_securebits(wire::Check& told);
  [[noreturn]] void refuse_news(const std::string& reason) const;
  void ask_about(Inventory news);
  TreeSize size_of_tree() const;
  void prepare_throttle(PrecopyPolicy& policy);
  void throttle(PrecopyPolicy& policy, const Decision& decision);
  /// With the tree frozen: what of `memories_` is still to be sent.
  void last_scan();
  /// Memories that the destination has nothing of are sent whole.
  void add_cold(const wire::FillReady& ready);

  // Without rounds: the destination makes memory ready while the tree runs.
  void reserve_ahead();
  /// With the tree frozen: what turned out not to exist is given back there.
  void give_back_reserved();

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
  CodecSet codecs_;              ///< in which pages may go
  bool begun_ = false;           ///< the destination may know the session
  bool touched_ = false;         ///< the tree was stopped
  bool undone_ = false;          ///< ... once, and refused for what only that could tell
  std::future<void> synced_;     ///< the files that the tree writes; its destructor waits
  std::future<Inventory> news_;  ///< of the frozen tree, likewise
  std::vector<std::byte> images_;
  std::vector<PageSource> memories_;
  bool precopy_ = false;
  bool peer_reserves_ = false;
  std::vector<PageReserve> reserved_;  ///< made ready at the destination
  std::set<MemoryId> in_rounds_;       ///< that the last round's layout named
  std::optional<DirtyTracker> tracker_;
  std::unique_ptr<Throttle> throttle_;
  std::chrono::microseconds last_compare_{};           ///< by content, while the tree was stopped
  std::map<MemoryId, std::vector<PageRun>> all_runs_;  ///< of the frozen tree, before the tracker reduced them
  FixedCost fixed_cost_;
  Waiter waiter_;
  Clock::time_point last_scan_began_;  ///< of those while the tree ran
  double round_trip_seconds_ = 0.001;
  Decision last_decision_;
  unsigned rounds_ = 0;
  uint64_t rounds_bytes_ = 0, rounds_wire_bytes_ = 0;
  bool passing_ = false;  ///< pages are on their way
  uint64_t bytes_before_pass_ = 0, wire_before_pass_ = 0;
  uint64_t pages_total_ = 0, bytes_sent_ = 0, wire_bytes_sent_ = 0;
  Clock::time_point rounds_began_, pass_began_;
  Clock::time_point freeze_began_, frozen_, shells_ready_, pages_sent_, ready_, opened_, last_heartbeat_;
};

}  // namespace migrate
