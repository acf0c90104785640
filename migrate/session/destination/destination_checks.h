// The destination's side of the checks: can this tree live here?
#pragma once

#include <string>
#include <vector>

#include "migrate/session/base/options.h"
#include "migrate/session/guardian/identity_policy.h"
#include "migration.pb.h"

namespace migrate {

/// What the options allow.
IdentityPolicy identity_policy(const ReceiveOptions& options);

struct CheckAnswer {
  std::vector<std::string> reasons;  ///< one sentence for each thing that is in the way
  std::vector<std::string> shared;   ///< FileChecks::shared()
};
CheckAnswer what_is_in_the_way(const wire::Check& check, const ReceiveOptions& options);

}  // namespace migrate
