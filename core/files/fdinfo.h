// /proc/PID/fdinfo/N: what the kernel tells about an open file description (proc(5)).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace migrate {

struct FdInfo {
  uint64_t pos = 0;
  uint32_t flags = 0;  ///< open flags without O_CLOEXEC
  bool cloexec = false;
  int mnt_id = -1;
  uint64_t ino = 0;  ///< 0 before Linux 5.14
  std::string text;  ///< all lines, for what only one kind has
};

/// Throws Corrupt.
FdInfo parse_fdinfo(std::string text);
/// The rest of the first line that starts with `key`, blanks trimmed.
std::optional<std::string_view> fdinfo_field(const FdInfo& info, std::string_view key);
/// The same as a number; throws Corrupt if it is missing or no number.
uint64_t fdinfo_number(const FdInfo& info, std::string_view key, int base);

}  // namespace migrate
