// Where memory is taken from (set_mempolicy(2), mbind(2)): whether this host has those nodes, and how they are set.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/restore/region.h"
#include "core/restore/task_image.h"

namespace migrate {

/// A list of nodes as the kernel tells it ("0-1,4"), bit n for node n; those from 64 on are left out. Throws Corrupt.
uint64_t nodes_of_list(std::string_view list);
/// Nodes that have memory, and that this process may use.
uint64_t usable_nodes();

/// Throws Refusal for nodes that are not `usable`, since the kernel would leave them out without a word; Corrupt for
/// what no dump writes.
void check_policies(const TaskImage& task, uint64_t usable);

/// For the address space, when all is mapped.
void plan_policies(const TaskImage& task, Region& region, OpList& list);
/// For one thread.
void plan_policy(const ext::ThreadExt& thread, Region& region, OpList& list);

}  // namespace migrate
