#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <optional>

#include "core/base/clock.h"
#include "core/base/time_left.h"
#include "core/restore/plans.h"
#include "core/task/timer_signals.h"

#ifndef PR_TIMER_CREATE_RESTORE_IDS  // 6.16
#define PR_TIMER_CREATE_RESTORE_IDS 77
#endif

namespace migrate {
namespace {

using restorer::kMayFail;
using restorer::Op;
using restorer::Tag;

constexpr uint64_t kNsPerSecond = 1'000'000'000;
constexpr size_t kMaskBytes = 8;

/// The kernel's struct sigevent for what is used here.
struct KernelSigevent {
  uint64_t value;
  int32_t signo, notify, tid;
  std::array<int32_t, 11> pad{};
};
static_assert(sizeof(KernelSigevent) == 64);

/// Counted down when the restorer arms the timer: lists are made earlier.
uint64_t until(uint64_t left_ns) {
  return static_cast<uint64_t>(clock_ns(CLOCK_MONOTONIC)) + std::min<uint64_t>(left_ns, INT64_MAX);
}

void plan_itimer(int which, const img::itimer_entry& e, uint64_t elapsed_ns, Region& region, OpList& list) {
  uint64_t ns = time_left_ns(e.vsec(), e.vusec() * 1000, elapsed_ns);
  // A periodic ITIMER_REAL whose SIGALRM is queued reads as 0: the kernel arms it again when that signal is taken. So
  // it does when the timer has expired once more meanwhile, for which no second signal is queued.
  if (ns == 0 && which == ITIMER_REAL && (e.isec() != 0 || e.iusec() != 0)) ns = 1;
  if (ns == 0) return;
  itimerval value{{static_cast<time_t>(e.isec()), static_cast<suseconds_t>(e.iusec())},
                  {static_cast<time_t>(ns / kNsPerSecond), static_cast<suseconds_t>(ns % kNsPerSecond / 1000)}};
  if (ns < 1000) value.it_value.tv_usec = 1;
  const uint64_t at = region.put_value(value);
  if (which == ITIMER_REAL) list.add(Op::time_left, Tag::timer, {at + offsetof(itimerval, it_value), until(ns), 1000});
  list.call(Tag::timer, SYS_setitimer, {static_cast<uint64_t>(which), at, 0});
}

void plan_create(const img::posix_timer_entry& e, Region& region, OpList& list) {
  KernelSigevent event{e.sival_ptr(), static_cast<int32_t>(e.si_signo()), static_cast<int32_t>(e.it_sigev_notify()), 0};
  if (event.notify == SIGEV_THREAD_ID) event.tid = e.notify_thread_id();
  list.add(Op::timer_create, Tag::timer, {e.clock_id(), region.put_value(event), e.it_id()});
}

clockid_t clock_of(const img::posix_timer_entry& e) { return static_cast<clockid_t>(e.clock_id()); }
uint64_t interval_of(const img::posix_timer_entry& e) { return time_left_ns(e.isec(), e.insec(), 0); }

/// Arms it for `ns` from now, or with TIMER_ABSTIME for `ns` of its clock.
void plan_arm(const img::posix_timer_entry& e, uint64_t ns, int flags, Region& region, OpList& list) {
  const itimerspec value{{static_cast<time_t>(e.isec()), static_cast<long>(e.insec())},
                         {static_cast<time_t>(ns / kNsPerSecond), static_cast<long>(ns % kNsPerSecond)}};
  const uint64_t at = region.put_value(value);
  if (flags == 0 && !is_processor_time(clock_of(e)))
    list.add(Op::time_left, Tag::timer, {at + offsetof(itimerspec, it_value), until(ns), 1});
  list.call(Tag::timer, SYS_timer_settime, {e.it_id(), static_cast<uint64_t>(flags), at, 0});
}

/// When an armed timer ends next, or has ended, on its own clock; 0 for clocks that are not known here.
uint64_t end_of(const img::posix_timer_entry& e, uint64_t elapsed_ns) {
  timespec now{};
  if (is_processor_time(clock_of(e)) || ::clock_gettime(clock_of(e), &now) != 0) return 0;
  const uint64_t end = static_cast<uint64_t>(now.tv_sec) * kNsPerSecond + static_cast<uint64_t>(now.tv_nsec) +
                       time_left_ns(e.vsec(), e.vnsec(), 0);
  return end > elapsed_ns ? end - elapsed_ns : 0;
}

/// Armed for a point in time none is late, and expirations that were missed are counted as overruns. A relative timer
/// of CLOCK_REALTIME does not follow when that clock is set; one that is not due yet is taken for one.
void plan_armed(const img::posix_timer_entry& e, uint64_t elapsed_ns, Region& region, OpList& list) {
  const uint64_t left = time_left_ns(e.vsec(), e.vnsec(), elapsed_ns), end = end_of(e, elapsed_ns);
  if (left == 0) return;
  const bool steady = clock_of(e) != CLOCK_REALTIME && clock_of(e) != CLOCK_REALTIME_ALARM && clock_of(e) != CLOCK_TAI;
  const bool missed = left == 1 && interval_of(e) != 0;
  if (end != 0 && (steady || missed)) return plan_arm(e, end, TIMER_ABSTIME, region, list);
  plan_arm(e, is_processor_time(clock_of(e)) ? time_left_ns(e.vsec(), e.vnsec(), 0) : left, 0, region, list);
}

/// Whether timer_getoverrun(2) is still about the last expiration when the task goes on, and can be made so: by a timer
/// that seems to have begun earlier, of which the leader takes the signal.
bool tells_overruns(const img::posix_timer_entry& e, uint64_t elapsed_ns) {
  constexpr uint64_t kSoon = kNsPerSecond / 5;
  return e.overrun() != 0 && e.it_sigev_notify() == SIGEV_SIGNAL && interval_of(e) != 0 &&
         time_left_ns(e.vsec(), e.vnsec(), elapsed_ns) > kSoon && end_of(e, elapsed_ns) != 0;
}

void plan_with_overruns(const img::posix_timer_entry& e, uint64_t elapsed_ns, Region& region, OpList& list) {
  const uint64_t end = end_of(e, elapsed_ns), interval = interval_of(e);
  const uint64_t periods = std::min<uint64_t>({uint64_t{e.overrun()} + 1, INT32_MAX, (end - 1) / interval});
  if (periods == 0) return plan_arm(e, end, TIMER_ABSTIME, region, list);
  plan_arm(e, end - periods * interval, TIMER_ABSTIME, region, list);
  const timespec patience{1, 0};
  list.call(Tag::timer, SYS_rt_sigtimedwait,
            {region.put_value(uint64_t{1} << ((e.si_signo() - 1) & 63)), 0, region.put_value(patience), kMaskBytes},
            kMayFail);
}

/// The queue in which the timer's signal would be.
const img::signal_queue_entry* queue_of(const TaskImage& task, const img::posix_timer_entry& e) {
  if (e.it_sigev_notify() == SIGEV_SIGNAL) return &task.core().tc().signals_s();
  if (e.it_sigev_notify() != SIGEV_THREAD_ID) return nullptr;
  for (size_t i = 0; i < task.tids.size(); ++i)
    if (task.tids[i] == e.notify_thread_id()) return &task.cores[i].thread_core().signals_p();
  return nullptr;
}

/// The signal of the timer's expiration, if it is queued: there is one at most. A one-shot timer that was armed again
/// has not sent what is queued, or sends another one.
const img::siginfo_entry* signal_of(const TaskImage& task, const img::posix_timer_entry& e) {
  const img::signal_queue_entry* queue = queue_of(task, e);
  if (queue == nullptr || (interval_of(e) == 0 && (e.vsec() != 0 || e.vnsec() != 0))) return nullptr;
  const auto& signals = queue->signals();
  const auto found = std::ranges::find_if(
      signals, [&](const auto& signal) { return timer_of(signal) == static_cast<int>(e.it_id()); });
  return found == signals.end() ? nullptr : &*found;
}

}  // namespace

bool timers_need_privilege(const TaskImage& task) {
  return std::ranges::any_of(task.core().tc().timers().posix(), [](const img::posix_timer_entry& e) {
    return clock_of(e) == CLOCK_REALTIME_ALARM || clock_of(e) == CLOCK_BOOTTIME_ALARM;
  });
}

void plan_timers(const TaskImage& task, uint64_t elapsed_ns, Region& region, OpList& list) {
  const img::task_core_entry& tc = task.core().tc();
  if (!tc.has_timers()) return;
  plan_itimer(ITIMER_REAL, tc.timers().real(), elapsed_ns, region, list);
  plan_itimer(ITIMER_VIRTUAL, tc.timers().virt(), 0, region, list);
  plan_itimer(ITIMER_PROF, tc.timers().prof(), 0, region, list);
  if (tc.timers().posix().empty()) return;
  list.call(Tag::timer, SYS_prctl, {PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0}, kMayFail);
  // The kernel lists the newest first, and where ids cannot be chosen they only count up.
  const auto& timers = tc.timers().posix();
  for (auto it = timers.rbegin(); it != timers.rend(); ++it) plan_create(*it, region, list);
  list.call(Tag::timer, SYS_prctl, {PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0}, kMayFail);
  // While no other sends signals.
  for (const img::posix_timer_entry& e : timers)
    if (tells_overruns(e, elapsed_ns) && signal_of(task, e) == nullptr) plan_with_overruns(e, elapsed_ns, region, list);
  for (const img::posix_timer_entry& e : timers) {
    const bool queued = signal_of(task, e) != nullptr;
    if (queued && e.it_sigev_notify() == SIGEV_THREAD_ID) plan_expired_timer(e, elapsed_ns, region, list);
    if (!queued && !tells_overruns(e, elapsed_ns)) plan_armed(e, elapsed_ns, region, list);
  }
}

const img::posix_timer_entry* timer_of_signal(const TaskImage& task, pid_t tid, const img::siginfo_entry& signal) {
  const std::optional<int> sender = timer_of(signal);
  if (!sender) return nullptr;
  const auto& timers = task.core().tc().timers().posix();
  const auto e =
      std::ranges::find_if(timers, [&](const auto& timer) { return static_cast<int>(timer.it_id()) == *sender; });
  if (e == timers.end() || signal_of(task, *e) != &signal) return nullptr;
  const bool of_thread = e->it_sigev_notify() == SIGEV_THREAD_ID;
  return tid == (of_thread ? static_cast<pid_t>(e->notify_thread_id()) : 0) ? &*e : nullptr;
}

void plan_expired_timer(const img::posix_timer_entry& e, uint64_t elapsed_ns, Region& region, OpList& list) {
  // Its phase stays, and from the last expiration before the dump on the kernel counts overruns.
  const uint64_t end = end_of(e, elapsed_ns), interval = interval_of(e);
  const bool known = interval != 0 && end > interval && (e.vsec() != 0 || e.vnsec() != 0);
  plan_arm(e, known ? end - interval : 1, TIMER_ABSTIME, region, list);
}

}  // namespace migrate
