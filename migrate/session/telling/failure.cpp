#include "migrate/session/telling/failure.h"

#include "core/base/refusals.h"
#include "migrate/session/base/session.h"

namespace migrate {

void tell_other_refusals(Events& events, const std::exception& failure) {
  if (const auto* all = dynamic_cast<const AllRefusals*>(&failure))
    for (const Refusal& other : all->others()) events.event("refused", other.what());
}

int tell_failure(Events& events, const std::exception& failure) {
  const bool refused = dynamic_cast<const Refusal*>(&failure) != nullptr;
  events.event(refused ? "refused" : "failed", failure.what());
  tell_other_refusals(events, failure);
  return refused ? kRefused : kFailed;
}

}  // namespace migrate
