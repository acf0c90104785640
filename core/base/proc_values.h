// Values in texts of /proc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace migrate {

using StatusFields = std::map<std::string, std::string>;

/// The text of /proc/PID/status as key → value (text after the tab).
StatusFields parse_status(const std::string& text);
/// Throws Corrupt if `key` is missing.
const std::string& status_field(const StatusFields& status, const std::string& key);

/// A number that is all of `text` but for blanks around it. Throws Corrupt, naming `where`, also for one that T
/// (int32_t, uint32_t, int64_t, uint64_t) does not hold.
template <class T = uint64_t>
T parse_number(std::string_view text, std::string_view where, int base = 10);
/// Numbers with blanks between them.
template <class T = uint64_t>
std::vector<T> parse_numbers(std::string_view text, std::string_view where);
/// The first of such numbers, or words ("1234 kB").
template <class T = uint64_t>
T parse_first_number(std::string_view text, std::string_view where);

/// The last number of a list as NSpid, NSpgid and NSsid of /proc/PID/status hold it; 0 for an empty one.
pid_t innermost(std::string_view list);

/// Pseudo-terminals have numbers below it (kernel.pty.max is 4096 as it comes).
inline constexpr uint32_t kMaxTerminals = 1 << 16;
/// N of the pseudo-terminal /dev/pts/N, of the device number that /proc/PID/stat tells (tty_nr, proc(5)); -1: another.
constexpr int pseudo_terminal(int tty_nr) {
  const auto device = static_cast<uint32_t>(tty_nr);
  const uint32_t major = device >> 8 & 0xfff;
  if (major < 136 || major > 143) return -1;
  return static_cast<int>((device & 0xff) | (device >> 12 & 0xfff00));
}

/// /proc/PID/timens_offsets, in nanoseconds.
struct ClockOffsetsText {
  int64_t monotonic_ns = 0, boottime_ns = 0;
};
ClockOffsetsText parse_clock_offsets(std::string_view text);

}  // namespace migrate
