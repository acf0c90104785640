#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <cstdio>

#include "core/files/anonymous.h"

namespace migrate {
namespace {

constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);  // TFD_IOC_SET_TICKS, linux/timerfd.h
constexpr uint64_t kMaxSeconds = uint64_t{1} << 62;

/// "(seconds, nanoseconds)"
std::pair<uint64_t, uint64_t> pair_field(const FdInfo& info, std::string_view key) {
  const auto field = fdinfo_field(info, key);
  unsigned long long sec = 0, nsec = 0;
  if (!field || std::sscanf(std::string(*field).c_str(), "(%llu, %llu)", &sec, &nsec) != 2)
    throw Corrupt("fdinfo of a timerfd", "no pair after " + std::string(key));
  return {sec, nsec};
}

timespec to_timespec(uint64_t sec, uint64_t nsec) {
  if (sec > kMaxSeconds || nsec >= 1'000'000'000) throw Corrupt("files.img", "a timerfd has an impossible time");
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
  t.set_vsec(vsec);
  t.set_vnsec(vnsec);
  t.set_isec(isec);
  t.set_insec(insec);
  context.emit(entry);
}

namespace {

/// What is left of an armed timer after `elapsed_ns` more; at least a nanosecond, since 0 would disarm it.
timespec less_elapsed(timespec value, uint64_t elapsed_ns) {
  constexpr uint64_t kNs = 1'000'000'000;
  const uint64_t seconds = elapsed_ns / kNs;
  if (static_cast<uint64_t>(value.tv_sec) < seconds) return {0, 1};
  value.tv_sec -= static_cast<time_t>(seconds);
  value.tv_nsec -= static_cast<long>(elapsed_ns % kNs);
  if (value.tv_nsec < 0) {
    if (value.tv_sec == 0) return {0, 1};
    --value.tv_sec;
    value.tv_nsec += static_cast<long>(kNs);
  }
  if (value.tv_sec == 0 && value.tv_nsec == 0) value.tv_nsec = 1;
  return value;
}

}  // namespace

Fd restore_timerfd(const img::timerfd_entry& entry, uint64_t elapsed_ns) {
  Fd fd(check(::timerfd_create(static_cast<int>(entry.clockid()), TFD_CLOEXEC), "make", "a timerfd"));
  itimerspec value{};
  value.it_value = to_timespec(entry.vsec(), entry.vnsec());
  value.it_interval = to_timespec(entry.isec(), entry.insec());
  int flags = static_cast<int>(entry.settime_flags() & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET));
  const bool armed = value.it_value.tv_sec != 0 || value.it_value.tv_nsec != 0;
  if (armed) value.it_value = less_elapsed(value.it_value, elapsed_ns);
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
  const uint64_t ticks = entry.ticks();
  if (ticks != 0) check(::ioctl(fd.get(), kSetTicks, &ticks), "set the expirations of", "a timerfd");
  return fd;
}

}  // namespace migrate
