// TreeOptions between agents, and from an agent to its guardian.
#pragma once

#include "core/base/tree_options.h"
#include "migration.pb.h"

namespace migrate {

void to_wire(const TreeOptions& options, wire::TreeOptions& message);
TreeOptions from_wire(const wire::TreeOptions& message);

}  // namespace migrate
