// One migration as the destination's agent serves it, step by step as in README.md: in receive_session.cpp until all is
// here, in receive_settle.cpp from READY on, and when it fails. One thread, besides the page workers.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <string>

#include "migrate/session/base/session.h"
#include "migrate/session/destination/copy_guardian.h"
#include "migrate/session/destination/page_intake.h"
#include "migrate/session/destination/receive_context.h"
#include "migrate/session/destination/source_questions.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/missing_wire.h"

namespace migrate {

class ReceiveSession {
 public:
  /// Behind the greeting.
  ReceiveSession(const ReceiveContext& context, ControlChannel& channel);
  /// Clock questions, the checks and, if they pass, the migration. `first` is the first message behind the greeting.
  /// Until READY is said, SIGINT and SIGTERM end the session; the copy is discarded. Returns an exit code; failures are
  /// reported as events.
  int run(wire::Message first);

 private:
  using Message = wire::Message;

  // The source's tree runs.
  void start(const Message& message);
  wire::GuardianRequest start_request(const wire::Begin& begin) const;
  void accept_streams(const wire::Begin& begin);
  /// Until the images come: layouts, discards and passes of pages, and what the tree opened meanwhile.
  void receive_rounds();
  void make_room_for_round();
  void reserve(const wire::Reserve& wanted);

  // It stands.
  void receive_images();
  void prepare();
  void receive_pages();
  void finish();

  Message next_message(const Deadline& deadline);
  bool served_beside(const Message& message);
  void let_feed_in(const Message& message);
  void note_missing(const wire::Discards& part);
  PageTotals receive_pass();
  void throw_if_given_up();
  bool peer_speaks() const;
  /// Waits up to `time`, or until `wake` is readable; throws if the user or the guardian's death ends it.
  void watch(std::chrono::milliseconds time, int wake);
  Deadline answer_by() const;

  // All is here.
  void say_ready();
  int await_decision();
  /// Through our guardian, or, should that have died, by its journal.
  uint32_t open_gate(uint64_t epoch);
  /// The tree runs here and waits for pages; the source may come again if this conversation ends.
  void await_whole();
  void ask_whole();
  /// The tree runs here whatever happens to this conversation.
  int await_done();

  // When it fails.
  int aborted(const std::string& reason);
  /// Before ready was said nobody counts on us, so the copy goes.
  int give_up(const std::exception& e);
  void settle_without_guardian(const std::string& reason) noexcept;
  int in_doubt(const std::exception& e);

  const ReceiveContext& c_;
  const ReceiveOptions& options_;
  ControlChannel& channel_;
  SourceQuestions questions_;
  SessionId id_{};
  uint64_t peer_epoch_ = 0;
  std::string label_;
  bool finishing_ = false;
  bool lazy_ = false;       ///< pages may come after the gate
  wire::Discards missing_;  ///< these
  PartsBound missing_bound_{"missing pages", 4'000'000};
  bool not_ours_ = false;  ///< the session never began here
  uint32_t tasks_ = 0;
  std::optional<Guardian> guardian_;
  std::optional<SessionWatch> watch_;
  std::optional<PageIntake> intake_;
  std::optional<CopyGuardian> copy_;  ///< of these two
  LayoutParts parts_;
  bool room_made_ = false;       ///< for the round whose pages come next
  std::optional<Message> next_;  ///< received, and not looked at yet
  Fd images_;
};

}  // namespace migrate
