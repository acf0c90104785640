#include "migrate/session/destination/copy_guardian.h"

#include <utility>

#include "migrate/session/telling/events.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/reserve_wire.h"

namespace migrate {

using wire::GuardianReply;
using wire::GuardianRequest;

CopyGuardian::CopyGuardian(Guardian& guardian, PageIntake& intake, const StopEvent& stop, const Timeouts& timeouts,
                           std::string label, uint64_t max_memory)
    : guardian_(guardian),
      intake_(intake),
      stop_(stop),
      timeouts_(timeouts),
      label_(std::move(label)),
      max_memory_(max_memory) {}

/// A request whose body, too large for a packet, follows it.
void CopyGuardian::tell(const GuardianRequest& request, const google::protobuf::MessageLite& body) {
  guardian_.send(request);
  guardian_.socket().send_blob(body);
}

void CopyGuardian::await(GuardianReply::BodyCase answer, const char* operation) {
  const GuardianReply reply = guardian_.await(Deadline::in(timeouts_.restore), &stop_);
  if (reply.body_case() != answer) throw Error(operation, "the copy", EPROTO);
}

std::vector<MemoryId> CopyGuardian::take_room() {
  await(GuardianReply::kTargets, "prepare");
  Room room = receive_room(guardian_.socket(), Deadline::in(timeouts_.restore));
  intake_.set_targets(std::move(room.targets));
  return std::move(room.cold);
}

std::vector<MemoryId> CopyGuardian::make_room(const TreeLayout& layout) {
  GuardianRequest request;
  request.set_layout(true);
  tell(request, whole(layout));
  return take_room();
}

std::vector<MemoryId> CopyGuardian::prepare(const Fd& images) {
  GuardianRequest request;
  request.set_prepare(true);
  guardian_.send(request);
  guardian_.socket().send_file(images.get());
  return take_room();
}

void CopyGuardian::discard(const wire::Discards& discards) {
  if (discards.runs_size() == 0) return;
  from_wire(discards);
  GuardianRequest request;
  request.set_discards(true);
  tell(request, discards);
  await(GuardianReply::kDiscarded, "give back pages of");
}

void CopyGuardian::reserve(const wire::Reserve& wanted) {
  from_wire(wanted);
  GuardianRequest request;
  request.set_reserve(true);
  tell(request, wanted);
  await(GuardianReply::kReserved, "make ready memory of");
  measure_memory();
}

void CopyGuardian::note_huge(const wire::Discards& huge) {
  huge_bound_.count(huge);
  from_wire(huge);
  GuardianRequest request;
  request.set_huge(true);
  tell(request, huge);
}

/// It cannot have grown by more than came since it was looked at.
void CopyGuardian::check_memory() {
  const uint64_t came = intake_.counters().bytes() - bytes_at_check_;
  if (memory_at_check_ + came > max_memory_) measure_memory();
}

void CopyGuardian::check_memory_with(uint64_t late_bytes) {
  measure_memory();
  if (late_bytes > max_memory_ - memory_at_check_) refuse_memory(memory_at_check_ + late_bytes);
}

void CopyGuardian::refuse_memory(uint64_t bytes) const {
  throw Refusal(
      "the copy of " + label_ + " has " + human_bytes(bytes) + " in memory and may have " + human_bytes(max_memory_),
      "start the receiver with a greater --max-memory");
}

void CopyGuardian::measure_memory() {
  GuardianRequest request;
  request.set_memory(true);
  bytes_at_check_ = intake_.counters().bytes();
  memory_at_check_ = guardian_.ask(request, Deadline::in(timeouts_.answer), &stop_).memory_bytes();
  if (memory_at_check_ > max_memory_) refuse_memory(memory_at_check_);
}

}  // namespace migrate
