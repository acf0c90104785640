// What the source asks before it begins a migration, and of what its tree opens meanwhile.
#pragma once

#include <set>
#include <string>

#include "migrate/session/destination/receive_context.h"
#include "migrate/session/wire/channel.h"

namespace migrate {

class SourceQuestions {
 public:
  /// Both outlive it.
  SourceQuestions(const ReceiveContext& context, ControlChannel& channel) : c_(context), channel_(channel) {}

  /// Answers clock questions and checks from `message` on. Returns Begin, or whatever came after a refusal. Throws
  /// Corrupt at what is out of turn.
  wire::Message answer(wire::Message message);
  /// Says what is in the way; a reason is an event once. True if nothing is.
  bool answer(const wire::Check& check);

 private:
  const ReceiveContext& c_;
  ControlChannel& channel_;
  bool checked_ = false;        ///< the last check passed
  std::set<std::string> told_;  ///< reasons to refuse
};

}  // namespace migrate
