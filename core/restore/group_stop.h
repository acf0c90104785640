// Tasks that were stopped by job control, stopped again, by ptrace(2).
#pragma once

#include <chrono>
#include <vector>

#include "core/inject/remote_call.h"
#include "core/restore/final_state.h"

namespace migrate {

/// Stops a task whose threads all wait in the restorer, which are seized, by the signal that it was stopped by. All are
/// in an event stop then, and stay stopped when they are let go. Where that signal cannot stop it here (of a terminal,
/// in an orphaned process group), SIGSTOP does.
void stop_group(const TaskImage& task, std::chrono::milliseconds timeout);

/// By calls of `parent`'s leader: it has waited for those of its children whose stop it had waited for, and has no
/// SIGCHLD of these stops, unless one was pending.
void collect_stops(const TaskImage& parent, const std::vector<pid_t>& stopped_children, RemoteCalls& leader, int mem,
                   uint64_t scratch);

}  // namespace migrate
