// What the two hosts tell each other before anything is touched, and whether a tree of one can run on the other.
#pragma once

#include <string>
#include <vector>

#include "migration.pb.h"

namespace migrate {

inline constexpr uint32_t kProtocolVersion = 1;

/// This host's greeting.
wire::Hello host_facts();

/// Why a tree of `source` cannot run at `destination`, a sentence each; empty: it can.
std::vector<std::string> incompatibilities(const wire::Hello& source, const wire::Hello& destination);
/// Refusal if the peer speaks another version or needs what we lack.
void check_hello_version(const wire::Hello& peer);

}  // namespace migrate
