#include "migrate/session/destination/source_questions.h"

#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/wire/clocks.h"

namespace migrate {
namespace {

using wire::Message;

constexpr size_t kMostTold = 200;  ///< reasons why a tree is not taken; the source learns all

}  // namespace

Message SourceQuestions::answer(Message message) {
  for (int i = 0; i < 1000; ++i) {
    if (message.body_case() == Message::kBegin) {
      if (!checked_) throw Corrupt("a message of the peer", "it begins before the checks");
      return message;
    }
    bool refused = false;
    if (message.body_case() == Message::kClockPing) {
      Message pong;
      pong.mutable_clock_pong()->set_number(message.clock_ping().number());
      pong.mutable_clock_pong()->set_monotonic_ns(monotonic_now_ns());
      channel_.send(std::move(pong));
    } else if (message.body_case() == Message::kCheck) {
      checked_ = answer(message.check());
      refused = !checked_;
    } else {
      throw Corrupt("a message of the peer", "it is out of turn");
    }
    try {
      message = channel_.receive(Deadline::in(c_.options.timeouts.answer));
    } catch (const Error&) {
      if (refused)
        return message;  // the source ends it here, unless it looks again: the tree may have closed something
      throw;
    }
  }
  throw Corrupt("the peer", "it asks without end");
}

bool SourceQuestions::answer(const wire::Check& check) {
  Message reply;
  reply.mutable_check_reply();
  const std::string what = check.pids_size() > 0 ? "pid:" + std::to_string(check.pids(0)) : "what is sent";
  const std::string cannot = "cannot take " + what + " from " + channel_.stream().peer() + ": ";
  const CheckAnswer found = what_is_in_the_way(check, c_.options);
  for (const std::string& path : found.shared) reply.mutable_check_reply()->add_shared(path);
  for (const std::string& reason : found.reasons) {
    reply.mutable_check_reply()->add_refusals(reason);
    // The source asks twice before it believes a refusal.
    if (told_.size() < kMostTold && told_.insert(reason).second) c_.events.event("refused", cannot + reason);
  }
  const bool good = reply.check_reply().refusals_size() == 0;
  channel_.send(std::move(reply));
  return good;
}

}  // namespace migrate
