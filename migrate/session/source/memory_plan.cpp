#include "migrate/session/source/memory_plan.h"

#include "core/memory/dirty_tracker.h"
#include "migrate/session/source/precopy.h"
#include "migrate/session/source/reserve.h"

namespace migrate {

std::unique_ptr<MemoryPlan> plan_memory(const PlanParts& parts) {
  if (parts.options.mode == SendMode::precopy) {
    const std::string why = DirtyTracker::cannot_track(parts.target, *parts.dump.mappings);
    if (why.empty()) return std::make_unique<Precopy>(parts);
    parts.events.event("mode", "stopped while it is copied: " + why,
                       {{"mode", std::string("stop-copy")}, {"why", why}});
  }
  return std::make_unique<Reserve>(parts);
}

}  // namespace migrate
