// The destination's guardian: builds the tree, holds it behind its gate and opens the gate. From PREPARED on it also
// listens on a socket in the state folder, for agents that come after its own died. In guardian_destination.cpp until
// the copy stands behind its gate, or is discarded; in guardian_gate.cpp from the opening of the gate on.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/base/log.h"
#include "core/freeze/memory_room.h"
#include "core/freeze/quick_moves.h"
#include "core/image/image_set.h"
#include "core/memory/page_runs.h"
#include "migrate/session/guardian/guardian.h"
#include "migrate/session/guardian/identity_policy.h"
#include "migrate/session/guardian/lazy_client.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/journal/journal.h"
#include "migrate/session/journal/trees.h"
#include "migration.pb.h"

namespace migrate {

class DestinationGuardian {
 public:
  DestinationGuardian(PacketSocket agent, const GuardianParts& parts, Logger& log)
      : agent_(std::move(agent)), parts_(parts), log_(log) {}

  int run();

 private:
  // Most return whether it goes on.
  bool start();
  void start_lazy_host(const wire::GuardianRequest::StartDestination& s, const std::string& without);
  bool serve_one();
  bool serve(const wire::GuardianRequest& request);

  // The tree runs at the source, or has just been stopped there.
  void prepare();
  void warm();
  void await_quick_moves();
  void discard_pages();
  void reserve_pages();
  void tell_memory();
  void reply_room(const Room& room);
  void note_hidden_sockets();
  void note_init();
  void note_place();
  void check_room(const PagesByMemory& missing);
  void finish();
  void listen_for_agents();

  // The gate, and what is open behind it.
  bool open(uint64_t peer_epoch);
  bool holds_all_pages();
  void thaw();
  void lazy_news();
  void became_whole(const std::string& given_up);
  void make_huge_again();
  void lose(const std::string& why, bool killed);
  void end_lazy_host();
  void tell_whole();
  bool done();

  // It will not run.
  bool abort(const std::string& reason);
  bool agent_gone();
  void discard(Authority authority, const std::string& reason);

  template <class M>
  M receive_message() {
    M message;
    agent_->receive_blob(message, Deadline::in(options_.timeout));
    return message;
  }

  bool accept_later_ = false;  ///< accept(2) failed just now
  std::optional<PacketSocket> agent_;
  const GuardianParts& parts_;
  Logger& log_;
  RestoreOptions options_;
  IdentityPolicy policy_;
  uint64_t max_tasks_ = 0;
  std::optional<JournalStore> store_;
  std::optional<Journal> journal_;
  ImageSet images_;
  std::unique_ptr<RestoredTree> tree_;
  std::optional<MemoryPlace> place_;  ///< where its memory is counted
  Fd listener_;
  std::optional<LazyClient> lazy_;         ///< until nothing is missing
  bool discarded_ = false;                 ///< the copy, whatever the journal could say of it
  bool whole_wanted_ = false;              ///< by the agent
  PagesByMemory huge_;                     ///< at the source
  std::optional<QuickMoves> quick_moves_;  ///< until the first tasks are there
};

}  // namespace migrate
