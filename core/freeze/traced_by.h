// Who has a task stopped that is to be.
#pragma once

#include <string>

#include "core/base/error.h"

namespace migrate {

/// That `who` has a tracer (the number in TracerPid): a debugger, or this program, which dumps it.
Refusal traced_by(const std::string& who, const std::string& tracer);

}  // namespace migrate
