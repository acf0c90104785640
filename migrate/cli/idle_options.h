// Options that were given and change nothing.
#pragma once

#include <string>
#include <vector>

#include "migrate/session/base/options.h"

namespace CLI {
class App;
}

namespace migrate::cli {

/// A sentence each, of the options of `send`.
std::vector<std::string> idle_send_options(const CLI::App& verb, const SendOptions& send);
/// Of those that say how hosts are connected.
std::vector<std::string> idle_link_options(const CLI::App& verb, bool insecure);

}  // namespace migrate::cli
