// Pages to be made ready, as messages, and back. What comes from a peer is hostile.
#pragma once

#include <span>
#include <vector>

#include "core/memory/tree_survey.h"
#include "migration.pb.h"

namespace migrate {

/// In parts that are done within seconds, wherever their memory comes from; at least one.
std::vector<wire::Reserve> to_wire(std::span<const PageReserve> pages);
/// Throws Corrupt for impossible ranges and for more than a part may hold. Whether they lie in a memory is to be
/// checked by who makes them ready.
std::vector<PageReserve> from_wire(const wire::Reserve& reserve);

}  // namespace migrate
