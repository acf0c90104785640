#include "lazypages/feed/pace.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <optional>
#include <string>

#include "core/base/fd.h"
#include "core/base/sched_attr.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kStep{20};
constexpr int kLooks = 5;           ///< of a window
constexpr int kRaisedWindows = 10;  ///< that a starving thread is an ordinary one
constexpr double kLittle = 0.3;     ///< of a window on a processor, of who wants to run all the time

/// The least that there is; in nanoseconds.
constexpr uint64_t kShortSlice = 100'000;
constexpr int32_t kPromptNice = -10;

void set_policy(pid_t tid, int policy) noexcept {
  const sched_param none{};
  ::sched_setscheduler(tid, policy, &none);
}

nanoseconds time_of(clockid_t clock) noexcept {
  timespec t{};
  ::clock_gettime(clock, &t);
  return std::chrono::seconds(t.tv_sec) + nanoseconds(t.tv_nsec);
}

/// It waits for a processor, or has one.
bool wants_to_run(int stat) noexcept {
  char text[512];
  const ssize_t n = ::pread(stat, text, sizeof text, 0);
  if (n <= 0) return false;
  // The name before it may hold anything.
  const void* end = ::memrchr(text, ')', static_cast<size_t>(n));
  const auto* at = static_cast<const char*>(end);
  return at != nullptr && at + 2 < text + n && at[2] == 'R';
}

}  // namespace

Prompt::Prompt() noexcept {
  SchedAttr attr{};
  if (::syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0 || attr.policy != SCHED_OTHER) return;
  before_ = {attr.nice, attr.runtime};
  // Who wakes goes before who computes if it weighs more, or (Linux 6.12) if its slice is shorter: sched(7), EEVDF.
  attr.runtime = kShortSlice;
  attr.nice = std::min(attr.nice, kPromptNice);
  attr.flags |= kResetOnFork;  // threads that it makes are ordinary ones
  if (::syscall(SYS_sched_setattr, 0, &attr, 0) == 0) return;
  attr.nice = before_->nice;
  attr.flags &= ~kResetOnFork;
  ::syscall(SYS_sched_setattr, 0, &attr, 0);
}

Prompt::~Prompt() {
  SchedAttr attr{};
  if (!before_ || ::syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0) return;
  attr.nice = before_->nice;
  attr.runtime = before_->slice;
  attr.flags &= ~kResetOnFork;
  ::syscall(SYS_sched_setattr, 0, &attr, 0);
}

struct FillPace::Thread {
  pid_t tid;
  clockid_t clock;
  Fd stat;
  nanoseconds ran{};
  std::chrono::steady_clock::time_point since{};
  int looks = 0, wanted = 0, raised = 0;
};

FillPace::FillPace(bool idle) : idle_(idle) {
  if (idle_) watcher_ = std::thread([this] { watch(); });
}

FillPace::~FillPace() {
  stop_.trigger();
  if (watcher_.joinable()) watcher_.join();
}

FillPace::Member::Member(FillPace& pace) : pace_(pace) {
  if (!pace_.idle_) return;
  set_policy(0, SCHED_IDLE);
  Thread thread{.tid = ::gettid(), .clock = {}, .stat = open_path("/proc/thread-self/stat", O_RDONLY)};
  ::pthread_getcpuclockid(::pthread_self(), &thread.clock);
  thread.ran = time_of(thread.clock);
  thread.since = std::chrono::steady_clock::now();
  const std::lock_guard lock(pace_.mutex_);
  pace_.threads_.push_back(std::move(thread));
}

FillPace::Member::~Member() {
  if (!pace_.idle_) return;
  set_policy(0, SCHED_OTHER);  // the watcher may wait for the lock
  const std::lock_guard lock(pace_.mutex_);
  std::erase_if(pace_.threads_, [](const Thread& t) { return t.tid == ::gettid(); });
}

void FillPace::look(Thread& thread) {
  ++thread.looks;
  if (wants_to_run(thread.stat.get())) ++thread.wanted;
  if (thread.looks < kLooks) return;
  const auto now = std::chrono::steady_clock::now();
  const nanoseconds ran = time_of(thread.clock);
  const std::chrono::duration<double> got = ran - thread.ran, window = now - thread.since;
  const bool starves = thread.wanted >= kLooks - 1 && got < kLittle * window;
  thread.looks = thread.wanted = 0;
  thread.ran = ran;
  thread.since = now;
  if (thread.raised > 0) {
    if (--thread.raised == 0) set_policy(thread.tid, SCHED_IDLE);
  } else if (starves) {
    set_policy(thread.tid, SCHED_OTHER);
    thread.raised = kRaisedWindows;
    ++raised_;
  }
}

void FillPace::watch() {
  pollfd stopped{stop_.fd(), POLLIN, 0};
  while (!stop_.stopped()) {
    ::poll(&stopped, 1, static_cast<int>(kStep.count()));
    const std::lock_guard lock(mutex_);
    for (Thread& thread : threads_) look(thread);
  }
}

}  // namespace migrate
