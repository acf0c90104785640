#include "core/task/proc_text.h"

#include <signal.h>

#include <charconv>
#include <sstream>
#include <string>

#include "core/base/error.h"

namespace migrate {
namespace {

/// In the order of resource numbers, as fs/proc/base.c prints them.
constexpr std::array<std::string_view, kRlimits> kLimitNames{
    "Max cpu time",       "Max file size",     "Max data size",         "Max stack size",
    "Max core file size", "Max resident set",  "Max processes",         "Max open files",
    "Max locked memory",  "Max address space", "Max file locks",        "Max pending signals",
    "Max msgqueue size",  "Max nice priority", "Max realtime priority", "Max realtime timeout"};

template <class T>
bool to_number(std::string_view text, T& value, int base = 10) {
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return ec == std::errc() && end != text.data();
}

uint64_t limit_value(const std::string& word) {
  uint64_t value = UINT64_MAX;
  if (word != "unlimited" && !to_number(word, value)) throw Corrupt("/proc/PID/limits", "a limit is not a number");
  return value;
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  std::istringstream in{std::string(text)};
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// "0x12ab" or "12ab" in hexadecimal.
bool to_hex(std::string_view text, uint64_t& value) {
  if (text.starts_with("0x")) text.remove_prefix(2);
  return to_number(text, value, 16);
}

/// "signal/tid.42", "none/pid.42"
void parse_notify(std::string_view text, PosixTimer& timer) {
  const size_t slash = text.find('/'), dot = text.find('.');
  if (slash == std::string_view::npos || dot == std::string_view::npos || dot < slash)
    throw Corrupt("/proc/PID/timers", "a notification is not understood");
  const std::string_view how = text.substr(0, slash);
  timer.notify = how == "signal" ? SIGEV_SIGNAL : how == "none" ? SIGEV_NONE : SIGEV_THREAD;
  to_number(text.substr(dot + 1), timer.target);
  if (text.substr(slash + 1, dot - slash - 1) == "tid") timer.notify |= 4;  // SIGEV_THREAD_ID
}

}  // namespace

std::array<Rlimit, kRlimits> parse_limits(std::string_view text) {
  std::array<Rlimit, kRlimits> limits{};
  size_t found = 0;
  for (const std::string& line : lines_of(text)) {
    for (size_t i = 0; i < kRlimits; ++i) {
      // Names are padded to 25 columns; "Max file size" must not match "Max file locks".
      if (!line.starts_with(kLimitNames[i]) || line.size() < 27 || line[kLimitNames[i].size()] != ' ') continue;
      std::istringstream words(line.substr(25));
      std::string soft, hard;
      words >> soft >> hard;
      limits[i] = {limit_value(soft), limit_value(hard)};
      ++found;
      break;
    }
  }
  if (found != kRlimits) throw Corrupt("/proc/PID/limits", "limits are missing");
  return limits;
}

std::vector<PosixTimer> parse_timers(std::string_view text) {
  std::vector<PosixTimer> timers;
  for (const std::string& line : lines_of(text)) {
    const std::string_view view(line);
    if (view.starts_with("ID: ")) {
      timers.emplace_back();
      if (!to_number(view.substr(4), timers.back().id)) throw Corrupt("/proc/PID/timers", "an id is not a number");
    }
    if (timers.empty()) continue;
    PosixTimer& timer = timers.back();
    if (view.starts_with("signal: ")) {
      const size_t slash = view.find('/');
      to_number(view.substr(8), timer.signal);
      if (slash != std::string_view::npos) to_hex(view.substr(slash + 1), timer.sigval);
    } else if (view.starts_with("notify: ")) {
      parse_notify(view.substr(8), timer);
    } else if (view.starts_with("ClockID: ")) {
      to_number(view.substr(9), timer.clock);
    }
  }
  return timers;
}

std::optional<int64_t> parse_exec_start(std::string_view sched) {
  const size_t at = sched.find("se.exec_start");
  if (at == std::string_view::npos) return std::nullopt;
  const size_t colon = sched.find(':', at);
  if (colon == std::string_view::npos) return std::nullopt;
  std::string_view value = sched.substr(colon + 1);
  value.remove_prefix(std::min(value.size(), value.find_first_not_of(' ')));
  const size_t dot = value.find('.');
  int64_t ms = 0, ns = 0;  // printed as milliseconds with six decimals
  if (dot == std::string_view::npos || !to_number(value, ms) || !to_number(value.substr(dot + 1, 6), ns))
    return std::nullopt;
  if (ms < 0 || ms > INT64_MAX / 1'000'000 - 1) return std::nullopt;
  if (ms == 0 && ns == 0) return std::nullopt;
  return ms * 1'000'000 + ns;
}

std::optional<BlockedCall> parse_syscall(std::string_view text) {
  std::istringstream words{std::string(text)};
  BlockedCall call;
  std::string word;
  if (!(words >> word) || !to_number(word, call.nr) || call.nr < 0) return std::nullopt;
  for (uint64_t& arg : call.args)
    if (!(words >> word) || !to_hex(word, arg)) return std::nullopt;
  if (!(words >> word) || !to_hex(word, call.sp) || !(words >> word) || !to_hex(word, call.ip)) return std::nullopt;
  return call;
}

}  // namespace migrate
