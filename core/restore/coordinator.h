// The coordinator: leads the shells through the stages, and leaves when the tree runs.
#pragma once

#include <optional>

#include "core/base/fd.h"
#include "core/restore/gate_watch.h"
#include "core/restore/restore.h"

namespace migrate {

/// Everything the coordinator does, from just after its fork; never returns. `launcher` is its socket to the launcher.
/// Should that hang up while the tree stands frozen in `gate`, the coordinator watches the gate itself. `init`: its
/// socket to the init of the tree's pid namespace, if it has one of its own.
[[noreturn]] void run_coordinator(const RestoreOptions& options, Fd launcher, std::optional<GateWatch> gate, Fd init);

}  // namespace migrate
