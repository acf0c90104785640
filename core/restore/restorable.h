// Whether a restore on this host, by a process like this one, would take the images.
#pragma once

#include <span>
#include <vector>

#include "core/base/procfs.h"
#include "core/image/image_set.h"
#include "core/memory/page_io.h"
#include "core/restore/address_space.h"
#include "core/restore/task_image.h"

namespace migrate {

/// For whoever is about to kill the tree that `images` are of: everything that a restore would refuse for the images'
/// sake, limits and capabilities of the restoring process, or want of address space and descriptor numbers, without
/// making anything. `memories`: where the tree has pages. Throws Refusal.
void check_restorable(const ImageSet& images, std::span<const PageSource> memories, bool shell_job);

/// Each has a descriptor table of its own, or Refusal.
void check_tables(std::span<const TaskImage> tasks);

/// What of that a running tree shows before it is stopped: whether its sessions and groups can be built again. `tasks`:
/// parents before children, zombies too; `inherit_outside` as for plan_tree(). Throws Refusal.
void check_buildable(const std::vector<ProcDir>& tasks, bool inherit_outside);

/// The kernel's mappings in this process ([vvar], [vvar_vclock], [vdso]), ascending. Looked for once: they stay where
/// they are, also in a fork.
const std::vector<AddressRange>& own_kernel_mappings();
/// Whether a kernel whose mappings are `own` can give a task those that another gave it. Code in one finds the other by
/// the distance.
bool kernel_mappings_fit(std::span<const AddressRange> wanted, std::span<const AddressRange> own);
/// Whether this process may give its children that oom_score_adj.
bool may_give_oom_score(int wanted);

}  // namespace migrate
