// Resource limits in words.
#pragma once

#include <cstdint>
#include <string>

namespace migrate {

/// "RLIMIT_NOFILE"; "number 99" of one that is not known (getrlimit(2)).
std::string limit_name(uint64_t resource);

}  // namespace migrate
