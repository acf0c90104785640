// What of a running tree only a privilege can have given it, as far as it is seen from outside: for the destination's
// sentence (guardian/privileges.h), before anything is touched.
#pragma once

#include <cstdint>

#include "core/base/procfs.h"
#include "migration.pb.h"

namespace migrate {

/// The tasks that have a socket.
struct SocketHolder {
  int32_t task = 0;
  uint64_t held = 0;  ///< capabilities
};

/// The permitted capabilities of a task.
uint64_t held_capabilities(const ProcDir& task);
/// Scheduling, limits, oom_score_adj and locked memory of one task.
void add_privileges(const ProcDir& task, uint64_t held, wire::Check& check);
/// A port that is bound.
void add_port_privilege(const SocketHolder& holder, uint32_t port, wire::Check& check);
/// Drops from `news` what `known` has, or another of its tasks: most are alike.
void leave_out_privileges(const wire::Check& known, wire::Check& news);

}  // namespace migrate
