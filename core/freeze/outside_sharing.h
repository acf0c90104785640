// Tasks outside of a tree that share its memory or its descriptor tables: clone(2) with CLONE_VM or CLONE_FILES and
// without CLONE_THREAD.
#pragma once

#include <set>
#include <vector>

#include "core/base/types.h"

namespace migrate {

/// False for kernel threads and for what is on its way out: kcmp(2) finds the missing memory (files, ...) of any two
/// of them equal. A task loses its memory first, so one that has it now had the rest a moment ago.
bool has_memory(pid_t task);

/// All processes that /proc lists, but for `inside`.
std::set<pid_t> processes_outside(const std::set<pid_t>& inside);

/// Throws Refusal if a thread of a task that is not in `inside` shares memory or descriptors with one of `members`, and
/// goes on doing so. While the members run a new descendant may share with them (vfork(2)): those are passed over, as
/// are tasks that end meanwhile. Any thread may call it.
///
/// Sharing begins with a clone(2) by one who shares. So of processes that were looked at before (`known`) only the
/// leaders are looked at, about a microsecond each; of others every thread is: some 10 microseconds each.
void refuse_outside_sharing(const std::vector<pid_t>& members, const std::set<pid_t>& inside,
                            const std::set<pid_t>& known = {});

}  // namespace migrate
