// Giving stopped tasks their final registers, from outside, by ptrace.
#pragma once

#include <chrono>
#include <functional>

#include "core/restore/descriptor_room.h"
#include "core/restore/task_image.h"

namespace migrate {

/// A task whose threads all wait in the restorer blob.
struct WaitingTask {
  const TaskImage* image = nullptr;
  uint64_t region = 0, region_bytes = 0;  ///< the blob's, to be unmapped
  DescriptorRoom room;                    ///< what is in it is ours, to be closed
  uint64_t elapsed_ns = 0;                ///< since the dump, on the tree's clock: time-outs have so much less left
  /// Its children that are stopped: the pids of those whose stop it has waited for, 0 for others.
  std::vector<pid_t> stopped_children = {};
};

/// Seizes all threads of `task`; they die with us until let go. The calling thread is the tracer from then on. A task
/// that was stopped is stopped again, all of them before the first gets its final state: parents hear of it.
void seize_task(const TaskImage& task, std::chrono::milliseconds timeout);

/// Leaves all threads of a seized task stopped with their final registers, extended state and signal masks, nothing of
/// the blob left.
/// `register_missing`: if pages are to come later (Staging::keep_pages_small). Called when nothing of ours writes any
/// more to pages that may be absent; only then huge pages are the task's own affair again.
void set_final_state(const WaitingTask& task, std::chrono::milliseconds timeout,
                     const std::function<void()>& register_missing = {});
/// Detaches.
void let_go(const TaskImage& task);

}  // namespace migrate
