// Character devices by their numbers (Documentation/admin-guide/devices.txt).
#pragma once

#include <cstdint>

namespace migrate {

/// Without state of their own: null, zero, full, random, urandom.
constexpr bool stateless_device(uint32_t major, uint32_t minor) {
  return major == 1 && (minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9);
}

constexpr bool terminal_device(uint32_t major, uint32_t) {
  return major == 4 || major == 5 || (major >= 136 && major <= 143);
}

}  // namespace migrate
