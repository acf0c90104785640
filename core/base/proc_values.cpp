#include "core/base/proc_values.h"

#include <charconv>
#include <sstream>

#include "core/base/error.h"

namespace migrate {

std::map<std::string, std::string> parse_status(const std::string& text) {
  std::map<std::string, std::string> fields;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    fields.emplace(line.substr(0, colon), value == std::string::npos ? "" : line.substr(value));
  }
  return fields;
}

uint64_t parse_number(std::string_view text, std::string_view where, int base) {
  const size_t start = text.find_first_not_of(" \t");
  const size_t last = text.find_last_not_of(" \t\n");
  if (start == std::string_view::npos || last == std::string_view::npos) throw Corrupt(where, "a number is missing");
  text = text.substr(start, last + 1 - start);
  if (base == 16 && text.starts_with("0x")) text.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (ec != std::errc() || end != text.data() + text.size())
    throw Corrupt(where, "'" + std::string(text) + "' is not a number");
  return value;
}

}  // namespace migrate
