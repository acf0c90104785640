// What a tree that is gone leaves in a namespace of others: its System V objects live on without it.
#pragma once

#include <string>
#include <vector>

#include "core/ipc/sysv_objects.h"

namespace migrate {

/// Removes `objects`, as they were found when the tree was stopped, from this process's IPC namespace, when the tree is
/// dead and lives elsewhere, or in images. What is not the same any more, or somebody has attached, stays. Returns a
/// sentence for each that stays though it is there.
std::vector<std::string> remove_left_behind(const std::vector<IpcObject>& objects) noexcept;

}  // namespace migrate
