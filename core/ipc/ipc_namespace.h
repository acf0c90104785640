// The IPC namespace of a task, which may be another than ours.
#pragma once

#include <functional>

#include "core/base/procfs.h"

namespace migrate {

/// Whether it is ours.
bool has_our_ipc_namespace(const ProcDir& task);

/// Calls `what` in the task's IPC namespace: by a thread of ours that joins it, if it is another one. Throws what
/// `what` throws; Error if the namespace cannot be joined.
void in_ipc_namespace(const ProcDir& task, const std::function<void()>& what);

/// A file of /proc/sys in the IPC namespace of the calling thread, also where the mounted /proc is masked, read-only or
/// of another pid namespace. Throws Error.
Fd open_ipc_setting(const std::string& path, int flags);

}  // namespace migrate
