// Queued signals of POSIX timers: which of them belong to the state in which the timers were read. A tree that is being
// dumped stands still, its timers do not.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "core/freeze/stopped_tree.h"
#include "core/inject/harvest.h"
#include "core/task/proc_text.h"
#include "images/siginfo.pb.h"

namespace migrate {

/// Of which timer of its task a queued signal says that it is. (A program may queue itself signals that lie.)
std::optional<int> timer_of(const img::siginfo_entry& signal);

/// The timers of a stopped task that have a signal in one of its queues.
std::set<int> timers_with_signals(const StoppedTask& task);

/// What is known of a task's timers.
struct TimersRead {
  const std::vector<PosixTimer>& listed;
  const TaskHarvest& harvest;        ///< what was left at `as_of_ns`
  const std::set<int>& sent_before;  ///< timers_with_signals() before they were read
  int64_t as_of_ns = 0;              ///< CLOCK_MONOTONIC, ours
};

/// Takes those signals out of a queue that was read at `read_at_ns` whose timers had not expired yet when these were
/// read: a restore lets them expire again. So it does with the old signal of a one-shot timer that was armed anew,
/// which the kernel would not deliver any more.
void drop_later_signals(const TimersRead& timers, int64_t read_at_ns, img::signal_queue_entry& queue);

}  // namespace migrate
