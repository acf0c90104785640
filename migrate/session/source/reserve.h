// Stop-copy: the destination makes its shells, and memory for the pages that exist, while the tree still runs. No
// content is sent before it stands, and nothing is touched.
#pragma once

#include "core/memory/tree_survey.h"
#include "migrate/session/source/memory_plan.h"

namespace migrate {

class Reserve final : public MemoryPlan {
 public:
  explicit Reserve(const PlanParts& parts) : p_(parts) {}
  bool tells_layouts() const override { return p_.peer.offers("reserve"); }
  void while_running() override;
  /// What turned out not to exist is given back at the destination.
  void frozen(FrozenTree& tree) override;

 private:
  const PlanParts p_;
  std::vector<PageReserve> reserved_;  ///< made ready at the destination
};

}  // namespace migrate
