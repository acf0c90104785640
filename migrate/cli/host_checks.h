// What `migrate check` looks at on this host.
#pragma once

#include <vector>

#include "core/base/features.h"
#include "migrate/session/base/options.h"

namespace migrate::cli {

/// Those that --feature knows.
std::vector<Feature> kernel_features();
/// One for all capabilities, or one for each that is missing.
std::vector<Feature> needed_capabilities();
/// Limits, huge pages, cgroups: nothing that a move cannot do without.
std::vector<Feature> settings();
/// Whether the keys of `send` and `receive` are there and usable. `required`: the user named them.
std::vector<Feature> keys(const LinkOptions& link, bool required);

}  // namespace migrate::cli
