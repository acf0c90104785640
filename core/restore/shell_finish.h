// The last part of a shell's life: it takes the task's descriptors and enters the restorer blob.
#pragma once

#include "core/restore/shell.h"
#include "core/restore/staging.h"

namespace migrate {

/// `images` are the final ones, `opened` the coordinator's descriptor table by file id. `control` must be numbered
/// above the floor. Does not return; throws before anything that matters is given up.
[[noreturn]] void finish_shell(const ShellContext& context, const TaskNode& node, const ImageSet& images,
                               const std::map<uint32_t, int>& opened, Staging& staging, const TaskImage& staged_task,
                               int control);

}  // namespace migrate
