#include "migrate/session/guardian/guardian_common.h"

namespace migrate {

using wire::GuardianReply;
using wire::GuardianRequest;

std::optional<GuardianRequest> await_start(PacketSocket& agent) {
  GuardianRequest request;
  if (agent.receive(request, Deadline::in(std::chrono::seconds(30))) != PacketSocket::Outcome::message) return {};
  return request;
}

void warn_unless_durable(const Journal& journal, Logger& log) {
  if (journal.durable()) return;
  log.error("session {} is {}, but that could not be synced: a power failure may take it back", to_hex(journal.id()),
            name_of(journal.state()));
}

void reply_started(PacketSocket& agent, uint64_t epoch) {
  GuardianReply reply;
  reply.set_started(epoch);
  agent.send(reply);
}

bool reply_failed(PacketSocket& agent, const Error& failure) {
  GuardianReply reply;
  reply.mutable_failed()->set_sentence(failure.what());
  reply.mutable_failed()->set_refusal(dynamic_cast<const Refusal*>(&failure) != nullptr);
  try {
    agent.send(reply);
    return true;
  } catch (const GuardianGone&) {
    return false;
  }
}

}  // namespace migrate
