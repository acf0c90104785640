#include "migrate/session/telling/failure.h"

#include <unistd.h>

#include "core/base/refusals.h"
#include "migrate/session/base/session.h"

namespace migrate {

void tell_other_refusals(Events& events, const std::exception& failure) {
  if (const auto* all = dynamic_cast<const AllRefusals*>(&failure))
    for (const Refusal& other : all->others()) events.event("refused", other.what());
}

std::string sentence_of(const std::exception& failure) {
  const auto* error = dynamic_cast<const Error*>(&failure);
  const bool forbidden = error != nullptr && (error->code() == EACCES || error->code() == EPERM);
  return std::string(failure.what()) + (forbidden && ::geteuid() != 0 ? "; run as root, see `migrate check`" : "");
}

int tell_failure(Events& events, const std::exception& failure) {
  const bool refused = dynamic_cast<const Refusal*>(&failure) != nullptr;
  events.event(refused ? "refused" : "failed", sentence_of(failure));
  tell_other_refusals(events, failure);
  return refused ? kRefused : kFailed;
}

}  // namespace migrate
