#include "core/task/timer_signals.h"

#include <signal.h>

#include <algorithm>
#include <cstring>

#include "core/base/clock.h"
#include "core/task/signal_queue.h"

namespace migrate {
namespace {

int64_t to_ns(const timespec& t) { return t.tv_sec * 1'000'000'000 + t.tv_nsec; }

bool belongs(const TimersRead& timers, int64_t read_at_ns, int id) {
  const auto listed = std::ranges::find(timers.listed, id, &PosixTimer::id);
  const auto read = std::ranges::find(timers.harvest.posix_timers, id, &TimerHarvest::id);
  if (listed == timers.listed.end() || read == timers.harvest.posix_timers.end()) return true;  // it is no timer's
  const int64_t left = to_ns(read->value.it_value);
  // One that had expired is off.
  if (to_ns(read->value.it_interval) == 0) return left == 0;
  // A periodic one tells the next time then, as any other. If that has passed too, this may be its first expiration.
  if (timers.sent_before.contains(id) || is_processor_time(listed->clock)) return true;
  return left - read->doubt_ns > read_at_ns - timers.as_of_ns;
}

}  // namespace

std::optional<int> timer_of(const img::siginfo_entry& signal) {
  siginfo_t info;
  if (signal.siginfo().size() != sizeof info) return std::nullopt;
  std::memcpy(&info, signal.siginfo().data(), sizeof info);
  if (info.si_code != SI_TIMER) return std::nullopt;
  return info.si_timerid;
}

std::set<int> timers_with_signals(const StoppedTask& task) {
  img::signal_queue_entry queued;
  read_signal_queue(task.threads.front().tid, true, queued);
  for (const StoppedThread& thread : task.threads) read_signal_queue(thread.tid, false, queued);
  std::set<int> found;
  for (const img::siginfo_entry& signal : queued.signals())
    if (const auto timer = timer_of(signal)) found.insert(*timer);
  return found;
}

void drop_later_signals(const TimersRead& timers, int64_t read_at_ns, img::signal_queue_entry& queue) {
  auto* signals = queue.mutable_signals();
  const auto end = std::remove_if(signals->begin(), signals->end(), [&](const img::siginfo_entry& signal) {
    const auto timer = timer_of(signal);
    return timer && !belongs(timers, read_at_ns, *timer);
  });
  signals->erase(end, signals->end());
}

}  // namespace migrate
