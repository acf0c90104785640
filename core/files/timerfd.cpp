#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <cstdio>

#include "core/base/clock.h"
#include "core/base/time_left.h"
#include "core/files/anonymous.h"

namespace migrate {
namespace {

constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);  // TFD_IOC_SET_TICKS, linux/timerfd.h
constexpr uint64_t kMaxSeconds = uint64_t{1} << 62;
constexpr uint64_t kNsPerSecond = 1'000'000'000;

/// "(seconds, nanoseconds)"
std::pair<uint64_t, uint64_t> pair_field(const FdInfo& info, std::string_view key) {
  const auto field = fdinfo_field(info, key);
  unsigned long long sec = 0, nsec = 0;
  if (!field || std::sscanf(std::string(*field).c_str(), "(%llu, %llu)", &sec, &nsec) != 2)
    throw Corrupt("fdinfo of a timerfd", "no pair after " + std::string(key));
  return {sec, nsec};
}

timespec to_timespec(uint64_t sec, uint64_t nsec) {
  if (sec > kMaxSeconds || nsec >= kNsPerSecond) throw Corrupt("files.img", "a timerfd has an impossible time");
  return {static_cast<time_t>(sec), static_cast<long>(nsec)};
}

/// A periodic timer stands still from an expiration until somebody looks at it (timerfd_tmrproc in the kernel): fdinfo
/// then tells no remaining time and one tick. timerfd_gettime(2) makes it count on, which the task cannot tell apart.
FdInfo current_info(const OpenFile& file) {
  itimerspec now{};
  check(::timerfd_gettime(file.ours.get(), &now), "read the timer:", file.who());
  if (now.it_interval.tv_sec == 0 && now.it_interval.tv_nsec == 0) return file.info;
  return parse_fdinfo(read_file_at(AT_FDCWD, "/proc/self/fdinfo/" + std::to_string(file.ours.get())));
}

}  // namespace

void dump_timerfd(const OpenFile& file, DumpContext& context) {
  const FdInfo info = current_info(file);
  img::file_entry entry = entry_of(img::fd_types::TIMERFD, file.id);
  img::timerfd_entry& t = *entry.mutable_tfd();
  describe_common(file, t);
  t.set_clockid(static_cast<uint32_t>(fdinfo_number(info, "clockid:", 10)));
  t.set_ticks(fdinfo_number(info, "ticks:", 10));
  t.set_settime_flags(static_cast<uint32_t>(fdinfo_number(info, "settime flags:", 8)));
  const auto [vsec, vnsec] = pair_field(info, "it_value:");  // what is left, also of absolute timers
  const auto [isec, insec] = pair_field(info, "it_interval:");
  const int64_t ago = context.options.as_of_ns ? clock_ns(CLOCK_MONOTONIC) - *context.options.as_of_ns : 0;
  const timespec left = time_left_then(to_timespec(vsec, vnsec), ago);
  t.set_vsec(static_cast<uint64_t>(left.tv_sec));
  t.set_vnsec(static_cast<uint64_t>(left.tv_nsec));
  t.set_isec(isec);
  t.set_insec(insec);
  context.emit(entry);
}

Fd restore_timerfd(const img::timerfd_entry& entry, uint64_t elapsed_ns) {
  Fd fd(check(::timerfd_create(static_cast<int>(entry.clockid()), TFD_CLOEXEC), "make", "a timerfd"));
  itimerspec value{};
  value.it_value = to_timespec(entry.vsec(), entry.vnsec());
  value.it_interval = to_timespec(entry.isec(), entry.insec());
  int flags = static_cast<int>(entry.settime_flags() & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET));
  const bool armed = value.it_value.tv_sec != 0 || value.it_value.tv_nsec != 0;
  uint64_t ticks = entry.ticks();
  if (armed) {
    const PeriodicTimer left = periodic_time_left(time_left_ns(entry.vsec(), entry.vnsec(), 0),
                                                  time_left_ns(entry.isec(), entry.insec(), 0), elapsed_ns);
    ticks += left.missed;
    value.it_value = {static_cast<time_t>(left.next_ns / kNsPerSecond), static_cast<long>(left.next_ns % kNsPerSecond)};
  }
  if ((flags & TFD_TIMER_ABSTIME) != 0 && armed) {
    timespec now{};
    check(::clock_gettime(static_cast<clockid_t>(entry.clockid()), &now), "read the clock of", "a timerfd");
    value.it_value.tv_sec += now.tv_sec;
    value.it_value.tv_nsec += now.tv_nsec;
    if (value.it_value.tv_nsec >= 1'000'000'000) {
      value.it_value.tv_nsec -= 1'000'000'000;
      ++value.it_value.tv_sec;
    }
  }
  check(::timerfd_settime(fd.get(), flags, &value, nullptr), "arm", "a timerfd");
  if (ticks != 0) check(::ioctl(fd.get(), kSetTicks, &ticks), "set the expirations of", "a timerfd");
  return fd;
}

}  // namespace migrate
