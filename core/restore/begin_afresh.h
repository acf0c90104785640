// What a process of a restore gives up of the process that it was forked from.
#pragma once

#include <vector>

#include "core/base/fd.h"

namespace migrate {

/// Standard descriptors lead nowhere; all others but `kept` are closed, and these get low numbers; as many descriptors
/// as may be are allowed; no signal is blocked, ignored or handled. The caller has no other thread.
void begin_afresh(std::vector<Fd*> kept);

/// As many descriptors as the hard limit allows; the soft one is 1024 as a rule.
void raise_limit_of_files();

}  // namespace migrate
