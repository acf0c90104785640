// The init of a received tree's pid namespace: it forks the shell of the tree's root, and stays until the last process
// of the namespace is gone. Nothing else of ours is in there when the tree runs.
#pragma once

#include "core/base/fd.h"

namespace migrate {

/// In the first process of a pid namespace, just after its fork; never returns. Tells the launcher of itself by
/// `launcher`, then does what the coordinator orders by `control`. When that hangs up, or our parent ends, before it
/// was told to stay, it ends, and with it all in the namespace.
[[noreturn]] void run_tree_init(Fd control, Fd launcher);

}  // namespace migrate
