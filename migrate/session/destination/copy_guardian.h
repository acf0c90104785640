// What the destination's agent asks of the guardian that builds the copy, as memory comes.
#pragma once

#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_io.h"
#include "core/memory/tree_layout.h"
#include "migrate/session/base/options.h"
#include "migrate/session/destination/page_intake.h"
#include "migrate/session/guardian/guardian.h"
#include "migrate/session/wire/missing_wire.h"
#include "pageserver/stop_event.h"

namespace migrate {

/// One thread. Every call throws Error (GuardianGone, Refusal) as the guardian answers, and Cancelled when `stop` is
/// triggered. What comes from the peer is checked here first, where a failure is its fault.
class CopyGuardian {
 public:
  /// Guardian, intake and `stop` outlive this. The copy of `label` may have `max_memory` bytes.
  CopyGuardian(Guardian& guardian, PageIntake& intake, const StopEvent& stop, const Timeouts& timeouts,
               std::string label, uint64_t max_memory);

  /// Room for a tree that still runs at the source; the next pass of pages goes there. Returns the memories of which
  /// nothing is there.
  std::vector<MemoryId> make_room(const TreeLayout& layout);
  /// The same for the stopped tree, by its images.
  std::vector<MemoryId> prepare(const Fd& images);
  void discard(const wire::Discards& discards);
  void reserve(const wire::Reserve& wanted);
  /// Pages that are huge ones at the source: they will be here, too, some time after the gate has opened.
  void note_huge(const wire::Discards& huge);
  /// The same, counting pages that will come when it runs.
  void check_memory_with(uint64_t late_bytes);
  /// What the sender says of its tree is only the sender's word: Refusal if the copy has more memory than it may.
  /// Nobody is asked while it cannot have.
  void check_memory();

 private:
  void tell(const wire::GuardianRequest& request, const google::protobuf::MessageLite& body);
  void await(wire::GuardianReply::BodyCase answer, const char* operation);
  std::vector<MemoryId> take_room();
  void measure_memory();
  [[noreturn]] void refuse_memory(uint64_t bytes) const;

  Guardian& guardian_;
  PageIntake& intake_;
  const StopEvent& stop_;
  const Timeouts timeouts_;
  const std::string label_;
  const uint64_t max_memory_;
  PartsBound huge_bound_{"huge pages", 1'000'000};
  uint64_t memory_at_check_ = 0, bytes_at_check_ = 0;
};

}  // namespace migrate
