#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <optional>
#include <string>

#include "core/base/clock.h"
#include "core/base/time_left.h"
#include "core/files/anonymous.h"
#include "core/files/kind.h"

namespace migrate {
namespace {

constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);  // TFD_IOC_SET_TICKS, linux/timerfd.h
constexpr uint64_t kMaxSeconds = uint64_t{1} << 62;
constexpr uint64_t kNsPerSecond = 1'000'000'000;

timespec to_timespec(uint64_t sec, uint64_t nsec) {
  if (sec > kMaxSeconds || nsec >= kNsPerSecond) throw Corrupt("files.img", "a timerfd has an impossible time");
  return {static_cast<time_t>(sec), static_cast<long>(nsec)};
}

struct TimerState {
  itimerspec left;
  FdInfo info;
};

bool is_zero(const timespec& t) { return t.tv_sec == 0 && t.tv_nsec == 0; }

bool is_less(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

/// What is left and how often it has expired, of one moment. A periodic timer stands still from an expiration until
/// somebody looks at it (timerfd_tmrproc in the kernel): fdinfo then tells no remaining time, as of one that is off,
/// and one tick. timerfd_gettime(2) makes it count on, which the task cannot tell apart. It may expire again before
/// fdinfo is read, and a timer that fires once between the two numbers of that: less must be left afterwards than
/// before. Of one that expires just then nothing is left, as of one that is off.
TimerState state_of(const OpenFile& file) {
  constexpr int kTries = 50, kOff = 10;
  const auto gettime = [&] {
    itimerspec now{};
    check(::timerfd_gettime(file.ours.get(), &now), "read the timer:", file.who());
    return now;
  };
  const std::string path = "/proc/self/fdinfo/" + std::to_string(file.ours.get());
  bool runs = false;
  std::optional<uint64_t> ticks;
  for (int i = 0;; ++i) {
    const itimerspec before = gettime();
    TimerState state{.left = {}, .info = parse_fdinfo(read_file_at(AT_FDCWD, path))};
    state.left = gettime();
    const timespec& left = state.left.it_value;
    const uint64_t now = fdinfo_number(state.info, "ticks:", 10);
    runs = runs || !is_zero(before.it_value) || !is_zero(left) || ticks.value_or(now) != now;
    ticks = now;
    if (!runs && (is_zero(state.left.it_interval) || i >= kOff)) return state;
    if (!is_zero(left) && is_less(left, before.it_value)) return state;
    if (i < kTries) continue;
    // Of an interval that is over sooner than this is looked at, any moment will do.
    if (is_zero(left)) state.left.it_value.tv_nsec = 1;
    return state;
  }
}

}  // namespace

void dump_timerfd(const OpenFile& file, DumpContext& context) {
  const auto [now, info] = state_of(file);
  img::file_entry entry = entry_of(img::fd_types::TIMERFD, file.id);
  img::timerfd_entry& t = *entry.mutable_tfd();
  describe_common(file, t);
  t.set_clockid(static_cast<uint32_t>(fdinfo_number(info, "clockid:", 10)));
  t.set_ticks(fdinfo_number(info, "ticks:", 10));
  t.set_settime_flags(static_cast<uint32_t>(fdinfo_number(info, "settime flags:", 8)));
  const int64_t ago = context.options.as_of_ns ? clock_ns(CLOCK_MONOTONIC) - *context.options.as_of_ns : 0;
  const timespec left = time_left_then(now.it_value, ago);  // also of absolute timers
  t.set_vsec(static_cast<uint64_t>(left.tv_sec));
  t.set_vnsec(static_cast<uint64_t>(left.tv_nsec));
  t.set_isec(static_cast<uint64_t>(now.it_interval.tv_sec));
  t.set_insec(static_cast<uint64_t>(now.it_interval.tv_nsec));
  context.emit(entry);
}

Fd restore_timerfd(const img::timerfd_entry& entry, std::optional<int64_t> dumped_at_ns) {
  Fd fd(check(::timerfd_create(static_cast<int>(entry.clockid()), TFD_CLOEXEC), "make", "a timerfd"));
  itimerspec value{};
  value.it_value = to_timespec(entry.vsec(), entry.vnsec());
  value.it_interval = to_timespec(entry.isec(), entry.insec());
  int flags = static_cast<int>(entry.settime_flags() & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET));
  const bool armed = value.it_value.tv_sec != 0 || value.it_value.tv_nsec != 0;
  uint64_t ticks = entry.ticks();
  if (armed) {
    // Now, not once for all: each that is restored takes its time.
    const int64_t passed = dumped_at_ns ? clock_ns(CLOCK_MONOTONIC) - *dumped_at_ns : 0;
    const auto elapsed_ns = static_cast<uint64_t>(std::max<int64_t>(passed, 0));
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

namespace {

class TimerfdDump : public DumpKind {
 public:
  explicit TimerfdDump(const DumpServices& services) : context_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.link == "anon_inode:[timerfd]"; }
  void dump(const OpenFile& file) override { dump_timerfd(file, context_); }
  bool preflight_opens(const OpenFile&) const override { return false; }
  void preflight(const OpenFile&, Preflight&) override {}

 private:
  DumpContext& context_;
};

class TimerfdRestore : public RestoreKind {
 public:
  explicit TimerfdRestore(const RestoreServices&) {}
  Fd open(const UsedFile& file) override { return restore_timerfd(file.entry.tfd(), file.dumped_at_ns); }
};

}  // namespace

extern const Kind kTimerfd{img::fd_types::TIMERFD, facts_of_part<&img::file_entry::has_tfd, &img::file_entry::tfd>,
                           make_dump<TimerfdDump>, make_restore<TimerfdRestore>};

}  // namespace migrate
