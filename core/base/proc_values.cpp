#include "core/base/proc_values.h"

#include <algorithm>
#include <charconv>
#include <sstream>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr std::string_view kBlanks = " \t\n";

/// Takes the first word off `text`; empty: there was none.
std::string_view take_word(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size()));
  const std::string_view word = text.substr(0, std::min(text.find_first_of(kBlanks), text.size()));
  text.remove_prefix(word.size());
  return word;
}

}  // namespace

StatusFields parse_status(const std::string& text) {
  StatusFields fields;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    fields.emplace(line.substr(0, colon), value == std::string::npos ? "" : line.substr(value));
  }
  return fields;
}

const std::string& status_field(const StatusFields& status, const std::string& key) {
  const auto it = status.find(key);
  if (it == status.end()) throw Corrupt("/proc/PID/status", key + " is missing");
  return it->second;
}

template <class T>
T parse_number(std::string_view text, std::string_view where, int base) {
  std::string_view rest = text;
  std::string_view word = take_word(rest);
  if (word.empty()) throw Corrupt(where, "a number is missing");
  if (base == 16 && word.starts_with("0x")) word.remove_prefix(2);
  T value = 0;
  const auto [end, ec] = std::from_chars(word.data(), word.data() + word.size(), value, base);
  if (ec != std::errc() || end != word.data() + word.size() || !take_word(rest).empty())
    throw Corrupt(where, "'" + std::string(text.substr(0, text.find_last_not_of(kBlanks) + 1)) + "' is not a number" +
                             (ec == std::errc::result_out_of_range ? " that fits" : ""));
  return value;
}

template <class T>
std::vector<T> parse_numbers(std::string_view text, std::string_view where) {
  std::vector<T> numbers;
  for (std::string_view word; !(word = take_word(text)).empty();) numbers.push_back(parse_number<T>(word, where));
  return numbers;
}

template <class T>
T parse_first_number(std::string_view text, std::string_view where) {
  return parse_number<T>(take_word(text), where);
}

#define MIGRATE_NUMBERS_OF(T)                                                   \
  template T parse_number<T>(std::string_view, std::string_view, int);          \
  template std::vector<T> parse_numbers<T>(std::string_view, std::string_view); \
  template T parse_first_number<T>(std::string_view, std::string_view);
MIGRATE_NUMBERS_OF(int32_t)
MIGRATE_NUMBERS_OF(uint32_t)
MIGRATE_NUMBERS_OF(int64_t)
MIGRATE_NUMBERS_OF(uint64_t)
#undef MIGRATE_NUMBERS_OF

pid_t innermost(std::string_view list) {
  const std::vector<pid_t> numbers = parse_numbers<pid_t>(list, "/proc/PID/status: a list of pids");
  return numbers.empty() ? 0 : numbers.back();
}

ClockOffsetsText parse_clock_offsets(std::string_view text) {
  constexpr const char* kWhere = "/proc/PID/timens_offsets";
  constexpr int64_t kNsPerSecond = 1'000'000'000, kMostSeconds = INT64_MAX / kNsPerSecond - 1;
  ClockOffsetsText offsets;
  for (std::string_view name; !(name = take_word(text)).empty();) {
    const auto seconds = parse_number<int64_t>(take_word(text), kWhere);
    const auto ns = parse_number<int64_t>(take_word(text), kWhere);
    if (seconds > kMostSeconds || seconds < -kMostSeconds || ns < 0 || ns >= kNsPerSecond)
      throw Corrupt(kWhere, "an impossible offset");
    if (name == "monotonic") offsets.monotonic_ns = seconds * kNsPerSecond + ns;
    if (name == "boottime") offsets.boottime_ns = seconds * kNsPerSecond + ns;
  }
  return offsets;
}

}  // namespace migrate
