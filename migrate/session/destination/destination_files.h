// The destination's side of the checks: may those who hold a file have it here?
#pragma once

#include <set>
#include <string>
#include <vector>

#include "migrate/session/guardian/identity_policy.h"
#include "migration.pb.h"

namespace migrate {

struct RightsHere {
  int root = -1;               ///< the folder where paths begin
  bool by_root = false;        ///< whether root may ever open something in a task's stead
  bool own_proc = false;       ///< the tree will see another /proc than is there
  std::set<std::string> told;  ///< paths about which there is a sentence already
  IdentityPolicy policy;       ///< nothing is looked at as somebody who may not come
  size_t most = 0;             ///< sentences in all
};

/// Adds a sentence for each file that none of its holders may have, nor root in their stead. Decided as the restore
/// will (core/files/early_look.h); nothing is opened.
void check_rights(const wire::Check& check, const RightsHere& here, std::vector<std::string>& reasons);

}  // namespace migrate
