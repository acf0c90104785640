// How many tasks a receiver lets a received tree have (--max-tasks): a shell is made for each at the sender's word.
#pragma once

#include <cstdint>

#include "core/image/image_set.h"
#include "core/memory/tree_layout.h"

namespace migrate {

/// Refusal if there are more than `most` tasks, threads counted too where they are known (in images). 0: no limit. To
/// be called before anything is forked. Throws Corrupt.
void enforce_task_limit(uint64_t most, const TreeLayout& layout);
void enforce_task_limit(uint64_t most, const ImageSet& images);

}  // namespace migrate
