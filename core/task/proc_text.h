// Texts of /proc/PID that only the task part reads: limits, timers, sched, syscall.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace migrate {

struct Rlimit {
  uint64_t cur = 0, max = 0;  ///< UINT64_MAX: unlimited
};
inline constexpr size_t kRlimits = 16;

/// /proc/PID/limits, by resource number (RLIMIT_CPU is 0). Units are setrlimit(2)'s. Throws Corrupt.
std::array<Rlimit, kRlimits> parse_limits(std::string_view text);

/// One timer of /proc/PID/timers (needs CONFIG_CHECKPOINT_RESTORE).
struct PosixTimer {
  int id = 0;
  int signal = 0;
  uint64_t sigval = 0;
  int notify = 0;  ///< SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, with SIGEV_THREAD_ID or-ed in
  int target = 0;  ///< for SIGEV_THREAD_ID: the thread, as the reader's pid namespace numbers it
  int clock = 0;
};
std::vector<PosixTimer> parse_timers(std::string_view text);

/// se.exec_start of /proc/PID/sched in ns of the scheduler's clock: when a sleeping thread went to sleep.
/// nullopt: it is not there, or 0, as of one that was taken to another CPU since.
std::optional<int64_t> parse_exec_start(std::string_view sched);

/// /proc/TID/syscall of a blocked thread; nullopt if it is running or not in a call.
struct BlockedCall {
  long nr = 0;
  std::array<uint64_t, 6> args{};
  uint64_t sp = 0, ip = 0;
};
std::optional<BlockedCall> parse_syscall(std::string_view text);

}  // namespace migrate
