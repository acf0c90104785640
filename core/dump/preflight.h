// What can be seen of a tree from outside that says whether it can be dumped. Reads /proc only; used on the running
// tree, and again, where it may have changed, on the stopped one.
#pragma once

#include <vector>

#include "core/base/procfs.h"
#include "core/base/types.h"
#include "core/memory/mapping_reader.h"

namespace migrate {

/// `root` and its descendants, parents before children; tasks that end meanwhile are left out. Throws Refusal if there
/// is no such task, or if we descend from it.
std::vector<ProcDir> collect_tree(Pid root);

/// Namespaces: those of the tree must be ours, but for pid, mount and time namespaces as a restore makes them. Throws
/// Refusal, naming task and namespace.
void check_namespaces(const std::vector<ProcDir>& tasks);
/// Seccomp filters, shadow stacks, scheduling policies and foreign tracers, of every thread; core dumps under way.
void check_threads(const std::vector<ProcDir>& tasks);
/// Programs that cannot be visited since they are 32-bit ones; room in each task for what a visit maps there: the
/// address space itself, and limits.
void check_visits(const std::vector<ProcDir>& tasks);
/// Tasks that stand in a frozen cgroup, where no visit gets an answer: whoever froze them decides about them, as a
/// migration that holds them does.
void check_frozen(const std::vector<ProcDir>& tasks);
/// Sessions whose leader lives outside the tree.
void check_sessions(const std::vector<ProcDir>& tasks);
/// Mappings that cannot be dumped, and shared memory objects that tasks outside the tree have mapped too. `tracked`:
/// write protection by userfaultfd is ours (DirtyTracker).
void check_mappings(const std::vector<ProcDir>& tasks, const MappingReader& mappings, bool tracked = false);
/// Address spaces, descriptor tables and the like that are shared in a way that a restore cannot rebuild. Sharing with
/// tasks outside is to be checked again on the stopped tree (refuse_outside_sharing()).
void check_sharing(const std::vector<ProcDir>& tasks);

/// Whether the task has left its namespaces and memory behind.
bool is_zombie(const ProcDir& task);

}  // namespace migrate
