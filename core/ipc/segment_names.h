// What the name of a segment's mapping tells, "/SYSV4d0191f2 (deleted)".
#pragma once

#include <charconv>
#include <cstdint>
#include <string_view>

namespace migrate {

inline constexpr std::string_view kSegmentName = "/SYSV";

/// The key that it was made with, which a segment that was removed has no more; 0: none.
inline uint32_t key_in_name(std::string_view name) {
  uint32_t key = 0;
  if (!name.starts_with(kSegmentName)) return 0;
  name.remove_prefix(kSegmentName.size());
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), key, 16);
  return error == std::errc() ? key : 0;
}

}  // namespace migrate
