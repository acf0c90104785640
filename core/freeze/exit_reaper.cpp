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
      // Stops of tracees are told even if not asked for (wait_task_stopped() of kernel/exit.c), and must stay for the
      // tracer.
      siginfo_t info{};
      constexpr int kOptions = WEXITED | WNOHANG | __WALL;
      if (::waitid(P_PID, static_cast<id_t>(tid), &info, kOptions | WNOWAIT) != 0 || info.si_pid == 0) continue;
      if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED)
        ::waitid(P_PID, static_cast<id_t>(tid), &info, kOptions);
    }
  }
}

}  // namespace migrate
