// Where a task's shell keeps its own descriptors, out of the way of those that the task will have.
#pragma once

#include <climits>
#include <cstddef>

#include "core/image/image_set.h"

namespace migrate {

/// Numbers [floor, end): no task of the tree uses one.
struct DescriptorRoom {
  int floor = 0;
  int end = INT_MAX;
};

/// For `needed` descriptors below `limit`: above all of the tree's, or, where these reach up to the limit, in the first
/// gap between them that is wide enough. Throws Refusal if there is none.
DescriptorRoom find_descriptor_room(const ImageSet& images, size_t needed, size_t limit);

}  // namespace migrate
