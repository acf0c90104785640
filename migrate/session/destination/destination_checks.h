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

/// One sentence for each thing that is in the way. `files_shared` is the source operator's word.
std::vector<std::string> what_is_in_the_way(const wire::Check& check, const ReceiveOptions& options);

}  // namespace migrate
