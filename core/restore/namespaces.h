// The namespaces a restored tree lives in.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include <signal.h>

#include "core/base/clock.h"
#include "core/restore/restore.h"

namespace migrate {

/// clone3(2) as fork(2): the child is a copy of us with pid `pid` (0: any). `parent_flag`: CLONE_PARENT (its exit
/// signal is ours then) or 0. Returns 0 in the child. Throws Error in one sentence if the pid is taken.
pid_t fork_with_pid(pid_t pid, uint64_t parent_flag = 0, int exit_signal = SIGCHLD);

/// The clock values that the tree should read now; nullopt if neither the options nor the images say.
struct NamespaceClocks {
  int64_t monotonic_ns, boottime_ns;
};
std::optional<NamespaceClocks> wanted_clocks(const ImageSet& images, const RestoreOptions& options);
/// CLOCK_MONOTONIC at which the images were made, by the tree's clock; nullopt if they do not say.
std::optional<int64_t> dumped_monotonic_ns(const ImageSet& images);
/// How long ago the dump was, by CLOCK_MONOTONIC in the tree's time namespace, which the caller must be in: timers have
/// so much less left. 0 if the images do not say when they were made.
uint64_t elapsed_since_dump_ns(const ImageSet& images);

/// Runs in a child that ends afterwards: unshares what `options` ask for, sets the clocks, and forks the coordinator as
/// a sibling of its own, in the new namespaces; if the pid namespace is new, too, its init, and that forks the
/// coordinator, with a number that no task of `tasks` has. Returns in the coordinator only: the socket to the init.
/// `launcher`: the socket to it.
Fd enter_namespaces(const ImageSet& images, const RestoreOptions& options, const std::vector<pid_t>& tasks,
                    const Fd& launcher);

/// In the coordinator, when it has a mount namespace of its own: nothing propagates out, `root` (if any) becomes the
/// root folder, /proc is of our pid namespace, /dev/pts a new instance.
void set_up_mounts(const std::string& root);

}  // namespace migrate
