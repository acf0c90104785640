// Addresses as numbers: of memory that a test puts where it wants it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace migrate {

inline std::byte* at(uint64_t address) { return reinterpret_cast<std::byte*>(address); }  // NOLINT

}  // namespace migrate
