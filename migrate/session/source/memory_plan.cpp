#include "migrate/session/source/memory_plan.h"

#include "core/memory/dirty_tracker.h"
#include "migrate/session/source/postcopy.h"
#include "migrate/session/source/precopy.h"
#include "migrate/session/source/reserve.h"

namespace migrate {

namespace {

/// None if the tree cannot be tracked, and an event says why.
std::unique_ptr<MemoryPlan> rounds(const PlanParts& parts, const char* instead) {
  const std::string why = DirtyTracker::cannot_track(parts.target, *parts.dump.mappings);
  if (why.empty()) return std::make_unique<Precopy>(parts);
  parts.events.event("mode", "no rounds: " + why, {{"mode", std::string(instead)}, {"why", why}});
  return nullptr;
}

}  // namespace

std::unique_ptr<MemoryPlan> plan_memory(const PlanParts& parts) {
  std::unique_ptr<MemoryPlan> plan;
  switch (parts.options.mode) {
    case SendMode::precopy:
    case SendMode::automatic:
      plan = rounds(parts, "stop-copy");
      if (plan && parts.options.policy.on_no_convergence == OnNoConvergence::postcopy)
        return std::make_unique<Postcopy>(parts, std::move(plan), Postcopy::When::rest_is_left);
      break;
    case SendMode::hybrid:
      return std::make_unique<Postcopy>(parts, rounds(parts, "postcopy"), Postcopy::When::always);
    case SendMode::postcopy:
      return std::make_unique<Postcopy>(parts, nullptr, Postcopy::When::always);
    case SendMode::stop_copy:
      break;
  }
  if (!plan) plan = std::make_unique<Reserve>(parts);
  return plan;
}

}  // namespace migrate
