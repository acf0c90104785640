// How a command ends that fails.
#pragma once

#include <exception>
#include <string>

#include "migrate/session/telling/events.h"

namespace migrate {

/// What it says, and if it is for want of permissions, and we are not root, that this may be why.
std::string sentence_of(const std::exception& failure);
/// Tells it, and gives the exit code: kRefused for a Refusal, which comes before anything is touched; kFailed for
/// everything else.
int tell_failure(Events& events, const std::exception& failure);
/// Of several (core/base/refusals.h) all but the first, if it is that.
void tell_other_refusals(Events& events, const std::exception& failure);

}  // namespace migrate
