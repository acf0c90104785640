// Locks on files that a tree gives up for its move, and takes again if it stays: what POSIX locks belong to is the
// task's descriptor table (fcntl(2)), so nobody but the task can do that.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/base/held_lock.h"
#include "core/freeze/stopped_tree.h"
#include "core/inject/harvest.h"

namespace migrate {

/// Gives up `locks` of stopped tasks, which are visited for that as harvest() does. Throws Refusal or Error; then some
/// may be given up, and they are to be taken again.
void give_up_locks(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log,
                   const FaultHook& hook = {});

/// Takes them again, as far as they can be had within a moment, and are still of the same file; those that are still
/// held do no harm. Returns a sentence for each that could not be had.
std::vector<std::string> take_locks(std::vector<StoppedTask>& tasks, std::span<const HeldLock> locks, Logger& log);

/// Lets a held tree run on by `thaw`, its locks taken again first: its `tasks` stop as soon as they are thawed, without
/// having run, and who has a lock is visited. One that is still on its way back from an earlier visit runs so far.
/// Returns what take_locks() does. `thaw` is called once it succeeds, whatever else fails; what it throws comes
/// through.
std::vector<std::string> run_on_with_locks(std::span<const HeldLock> locks, std::span<const Pid> tasks,
                                           const std::function<void()>& thaw, Logger& log);

/// Throws Refusal if somebody outside of the tree waits for one of the locks, who would get it. `tasks`: the tree's. Of
/// who waits on another host of a network file system, or is outside of our pid namespace, the kernel does not tell.
void refuse_waiters_outside(std::span<const HeldLock> locks, std::span<const Pid> tasks);

}  // namespace migrate
