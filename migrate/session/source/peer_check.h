// What a receiver says about its host, without beginning anything there.
#pragma once

#include <string>
#include <vector>

#include "core/base/features.h"
#include "migrate/session/base/options.h"

namespace migrate {

struct PeerCheck {
  std::string peer;        ///< address and name
  std::string connection;  ///< how it is protected
  std::string host;        ///< what it calls itself
  uint64_t memory_available = 0;
  std::vector<Feature> facts;  ///< compare_hosts(): trees of this host, there
};

/// Connects as `send` does, greets and says goodbye. Refusal or Error says why that is not possible.
PeerCheck check_peer(const LinkOptions& link, const std::string& address, const Timeouts& timeouts);

}  // namespace migrate
