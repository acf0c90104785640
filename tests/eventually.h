// Waiting for what tells nobody when it happens.
#pragma once

#include <unistd.h>

#include <chrono>

#include "core/base/deadline.h"

namespace migrate {

/// False: it has not happened within `limit`. Once true, `condition` is not asked again: it may take what it finds.
template <class Condition>
[[nodiscard]] bool eventually(Condition&& condition, std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  const Deadline deadline = Deadline::in(limit);
  while (!condition()) {
    if (deadline.passed()) return false;
    ::usleep(200);
  }
  return true;
}

}  // namespace migrate
