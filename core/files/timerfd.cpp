#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

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

bool is_zero(const timespec& t) { return t.tv_sec == 0 && t.tv_nsec == 0; }

bool is_less(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

itimerspec left_of(int fd, const std::string& who) {
  itimerspec left{};
  check(::timerfd_gettime(fd, &left), "read the timer:", who);
  return left;
}

struct TimerState {
  itimerspec left{};
  uint64_t ticks = 0;
  bool in_doubt = false;  ///< off, or due: its interrupt is still to come
};

/// What is left and how often it has expired, of one moment. A periodic timer stands still from an expiration until
/// somebody looks at it (timerfd_tmrproc in the kernel): fdinfo then tells no remaining time, as of one that is off,
/// and one tick. timerfd_gettime(2) makes it count on, which the task cannot tell apart. It may expire again before
/// fdinfo is read, and a timer that fires once between the two numbers of that: less must be left afterwards than
/// before. Of one that is due nothing is left, as of one that is off, until the processor takes the interrupt.
TimerState state_of(int fd, const std::string& who) {
  constexpr int kTries = 50;
  const std::string path = "/proc/self/fdinfo/" + std::to_string(fd);
  bool runs = false;
  for (int i = 0;; ++i) {
    const itimerspec before = left_of(fd, who);
    TimerState state;
    state.ticks = fdinfo_number(parse_fdinfo(read_file_at(AT_FDCWD, path)), "ticks:", 10);
    state.left = left_of(fd, who);
    timespec& left = state.left.it_value;
    const bool once = is_zero(state.left.it_interval), was_zero = is_zero(before.it_value);
    runs = runs || !was_zero || !is_zero(left) || (!once && state.ticks != 0);
    if (!is_zero(left) && is_less(left, before.it_value)) return state;
    if (is_zero(left) && once && state.ticks != 0) return state;
    // Of an interval that is over sooner than this is looked at, any moment will do.
    if (i < kTries && !(was_zero && is_zero(left))) continue;
    state.in_doubt = !runs;
    if (runs && is_zero(left)) left.tv_nsec = 1;
    return state;
  }
}

void put_state(const TimerState& state, const DumpContext& context, img::timerfd_entry& t) {
  t.set_ticks(state.ticks);
  const int64_t ago = context.options.as_of_ns ? clock_ns(CLOCK_MONOTONIC) - *context.options.as_of_ns : 0;
  const timespec left = time_left_then(state.left.it_value, ago);  // also of absolute timers
  t.set_vsec(static_cast<uint64_t>(left.tv_sec));
  t.set_vnsec(static_cast<uint64_t>(left.tv_nsec));
  t.set_isec(static_cast<uint64_t>(state.left.it_interval.tv_sec));
  t.set_insec(static_cast<uint64_t>(state.left.it_interval.tv_nsec));
}

}  // namespace

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
  void dump(const OpenFile& file) override;
  void settle() override;
  bool preflight_opens(const OpenFile&) const override { return false; }
  void preflight(const OpenFile&, Preflight&) override {}

 private:
  /// One of which nothing is left: off, most likely.
  struct Doubt {
    img::file_entry entry;
    Fd fd;
    std::string who;
  };

  static constexpr size_t kMostDoubts = 256;  ///< each holds a descriptor of ours

  DumpContext& context_;
  std::vector<Doubt> doubts_;
  int64_t looked_ns_ = 0;  ///< CLOCK_MONOTONIC, at the last of them
};

void TimerfdDump::dump(const OpenFile& file) {
  img::file_entry entry = entry_of(img::fd_types::TIMERFD, file.id);
  img::timerfd_entry& t = *entry.mutable_tfd();
  describe_common(file, t);
  t.set_clockid(static_cast<uint32_t>(fdinfo_number(file.info, "clockid:", 10)));
  t.set_settime_flags(static_cast<uint32_t>(fdinfo_number(file.info, "settime flags:", 8)));
  const TimerState state = state_of(file.ours.get(), file.who());
  if (!state.in_doubt) {
    put_state(state, context_, t);
    context_.emit(entry);
    return;
  }
  // No more descriptors of ours than that.
  if (doubts_.size() >= kMostDoubts) settle();
  doubts_.push_back(
      {std::move(entry), Fd(check(::fcntl(file.ours.get(), F_DUPFD_CLOEXEC, 0), "duplicate", file.who())), file.who()});
  looked_ns_ = clock_ns(CLOCK_MONOTONIC);
}

/// A timer expires by an interrupt of the processor where it was armed. An idle one takes it tens of microseconds
/// late, one of a guest that has to wait for its turn up to milliseconds.
void TimerfdDump::settle() {
  constexpr int64_t kLate = 2'000'000;
  if (doubts_.empty()) return;
  const int64_t left = looked_ns_ + kLate - clock_ns(CLOCK_MONOTONIC);
  if (left > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(left));
  for (Doubt& doubt : doubts_) {
    put_state(state_of(doubt.fd.get(), doubt.who), context_, *doubt.entry.mutable_tfd());
    context_.emit(doubt.entry);
  }
  doubts_.clear();
}

class TimerfdRestore : public RestoreKind {
 public:
  explicit TimerfdRestore(const RestoreServices&) {}
  Fd open(const UsedFile& file) override { return restore_timerfd(file.entry.tfd(), file.dumped_at_ns); }
};

}  // namespace

extern const Kind kTimerfd{img::fd_types::TIMERFD, facts_of_part<&img::file_entry::has_tfd, &img::file_entry::tfd>,
                           make_dump<TimerfdDump>, make_restore<TimerfdRestore>};

}  // namespace migrate
