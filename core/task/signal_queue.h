// Pending signals with their siginfo.
#pragma once

#include "core/base/types.h"
#include "images/siginfo.pb.h"

namespace migrate {

/// Reads the queue of a ptrace-stopped thread (`shared`: of its task) by PTRACE_PEEKSIGINFO; nothing is taken out.
/// Each siginfo has the kernel's 128 bytes.
void read_signal_queue(Tid tid, bool shared, img::signal_queue_entry& out);

}  // namespace migrate
