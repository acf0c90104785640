#include "core/files/fdinfo.h"

#include <fcntl.h>

#include <charconv>

#include "core/base/error.h"

namespace migrate {

std::optional<std::string_view> fdinfo_field(const FdInfo& info, std::string_view key) {
  std::string_view rest(info.text);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (!line.starts_with(key)) continue;
    line.remove_prefix(key.size());
    const size_t start = line.find_first_not_of(" \t");
    return start == std::string_view::npos ? std::string_view() : line.substr(start);
  }
  return std::nullopt;
}

uint64_t fdinfo_number(const FdInfo& info, std::string_view key, int base) {
  const auto field = fdinfo_field(info, key);
  uint64_t value = 0;
  if (!field || std::from_chars(field->data(), field->data() + field->size(), value, base).ec != std::errc())
    throw Corrupt("fdinfo", "no number after '" + std::string(key) + "'");
  return value;
}

FdInfo parse_fdinfo(std::string text) {
  FdInfo info;
  info.text = std::move(text);
  info.pos = fdinfo_number(info, "pos:", 10);
  const auto flags = static_cast<uint32_t>(fdinfo_number(info, "flags:", 8));
  info.cloexec = (flags & O_CLOEXEC) != 0;
  info.flags = flags & ~static_cast<uint32_t>(O_CLOEXEC);
  info.mnt_id = static_cast<int>(fdinfo_number(info, "mnt_id:", 10));
  if (fdinfo_field(info, "ino:")) info.ino = fdinfo_number(info, "ino:", 10);
  return info;
}

}  // namespace migrate
