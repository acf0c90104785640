#include "core/files/ended_task.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "core/base/error.h"

namespace migrate {

EndedTask::EndedTask(pid_t pid) : pid_(pid) {
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<uint64_t>(&pid_);
  args.set_tid_size = 1;
  const long child = ::syscall(SYS_clone3, &args, sizeof args);
  if (child == 0) ::_exit(0);
  check(child, "start a process that ends with pid", std::to_string(pid));
  // Not waited for, it stays visible.
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
}

EndedTask::~EndedTask() { ::waitpid(pid_, nullptr, 0); }

}  // namespace migrate
