// A userfaultfd for another task's memory: only the task itself can make one (userfaultfd(2)).
#pragma once

#include <cstdint>

#include "core/inject/harvest.h"

namespace migrate {

/// Visits one stopped task (as harvest() does, with the same promises), makes a userfaultfd with UFFD_USER_MODE_ONLY
/// and `features` there and takes it over: when this returns the task has no such descriptor any more. Nothing is
/// registered yet. Closing the result unregisters everything. Throws Refusal or Error with the task cured.
/// `witnesses` as in harvest(). `securebits`: receives the leader's.
Fd make_userfaultfd(StoppedTask& task, uint64_t features, Logger& log, const FaultHook& hook = {},
                    DomainWitnesses* witnesses = nullptr, uint32_t* securebits = nullptr);

}  // namespace migrate
