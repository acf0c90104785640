#include "core/freeze/exit_reaper.h"

#include <sys/wait.h>

#include <chrono>

namespace migrate {
namespace {

/// Seizing takes microseconds.
constexpr std::chrono::milliseconds kLong{10};

}  // namespace

ExitReaper::ExitReaper() : thread_([this] { run(); }) {}

ExitReaper::~ExitReaper() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void ExitReaper::add(pid_t tid) {
  const std::lock_guard lock(mutex_);
  tracees_.push_back(tid);
}

void ExitReaper::set_busy(bool busy) {
  {
    const std::lock_guard lock(mutex_);
    busy_ = busy;
  }
  if (busy) changed_.notify_one();
}

void ExitReaper::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return busy_ || ends_; });
    if (ends_) return;
    // One that began meanwhile is taken for the same: no harm in that.
    if (changed_.wait_for(lock, kLong, [this] { return !busy_ || ends_; })) continue;
    for (const pid_t tid : tracees_) {
      siginfo_t info;
      ::waitid(P_PID, static_cast<id_t>(tid), &info, WEXITED | WNOHANG | __WALL);
    }
  }
}

}  // namespace migrate
