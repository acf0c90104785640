// The coordinator: forks the shells, leads them through the stages, and stays as the namespace's init.
#pragma once

#include <optional>

#include "core/base/fd.h"
#include "core/restore/gate_watch.h"
#include "core/restore/restore.h"

namespace migrate {

/// Everything the coordinator does, from just after its fork; never returns. `launcher` is its socket to the launcher.
/// Should that hang up while the tree stands frozen in `gate`, the coordinator watches the gate itself.
[[noreturn]] void run_coordinator(const RestoreOptions& options, Fd launcher, std::optional<GateWatch> gate);

}  // namespace migrate
