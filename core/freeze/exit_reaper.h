// PTRACE_SEIZE waits for the cred_guard_mutex of the process. A thread of it that executes a program holds that, and
// waits for all others to be dead and reaped, tracees by their tracer: which would be us, waiting in PTRACE_SEIZE, for
// ever (kernel/ptrace.c, de_thread() of fs/exec.c). So while the tracer seizes, another thread of ours looks after
// that.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace migrate {

class ExitReaper {
 public:
  ExitReaper();
  ~ExitReaper();
  ExitReaper(const ExitReaper&) = delete;
  ExitReaper& operator=(const ExitReaper&) = delete;

  /// A thread that the tracer has seized.
  void add(pid_t tid);

  /// While one exists, and it takes long, tracees that have ended are reaped: waiting for them says then that they are
  /// no children of ours. Nothing else that they report is taken.
  class Watch {
   public:
    /// Null: nothing is done.
    explicit Watch(ExitReaper* reaper) : reaper_(reaper) {
      if (reaper_ != nullptr) reaper_->set_busy(true);
    }
    ~Watch() {
      if (reaper_ != nullptr) reaper_->set_busy(false);
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    ExitReaper* reaper_;
  };

 private:
  void set_busy(bool busy);
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<pid_t> tracees_;
  bool busy_ = false, ends_ = false;
  std::thread thread_;  ///< last: it uses the others
};

}  // namespace migrate
