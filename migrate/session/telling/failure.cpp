#include "migrate/session/telling/failure.h"

#include "core/base/error.h"
#include "migrate/session/base/session.h"

namespace migrate {

int tell_failure(Events& events, const std::exception& failure) {
  const bool refused = dynamic_cast<const Refusal*>(&failure) != nullptr;
  events.event(refused ? "refused" : "failed", failure.what());
  return refused ? kRefused : kFailed;
}

}  // namespace migrate
