// Values in texts of /proc.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace migrate {

/// The text of /proc/PID/status as key → value (text after the tab).
std::map<std::string, std::string> parse_status(const std::string& text);

/// A number that is all of `text` but for blanks around it. Throws Corrupt, naming `where`.
uint64_t parse_number(std::string_view text, std::string_view where, int base = 10);

}  // namespace migrate
