#include "core/restore/tree_init.h"

#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/procfs.h"
#include "core/restore/begin_afresh.h"
#include "core/restore/messages.h"
#include "core/restore/shell.h"

namespace migrate {
namespace {

class TreeInit {
 public:
  explicit TreeInit(Fd control) : control_(std::move(control)) {}

  /// Until it may stay, or is to end.
  void obey() {
    while (auto m = receive_message(control_.get())) {
      try {
        if (m->type == Msg::detach) {
          ::prctl(PR_SET_PDEATHSIG, 0);
          send_message(control_.get(), Msg::ok, 0);
          return stay();
        }
        if (m->type != Msg::tree) throw Error("the tree's init got a message that it does not know");
        fork_root(*m);
        send_message(control_.get(), Msg::ok, 0);
      } catch (...) {
        send_current_exception(control_.get(), 0);
      }
    }
  }

 private:
  /// `m`: all tasks with their plan, the socket to the launcher, the coordinator; its body says whether pages come
  /// later.
  void fork_root(Message& m) {
    if (m.fds.size() != 3) throw Error("receive", "the tree", EBADMSG);
    const Fd launcher = move_above(std::move(m.fds[1]), kLowestFloor);
    const Fd coordinator = move_above(std::move(m.fds[2]), kLowestFloor);
    // Which has set up the mounts meanwhile, and changed their root.
    check(::setns(coordinator.get(), CLONE_NEWNS), "go to the root of", "the tree's mounts");
    ShellContext context;
    context.own_namespaces = true;
    context.lazy = !m.body.empty();
    context.launcher = launcher.get();
    context.coordinator_pidfd = coordinator.get();
    std::vector<int> ends;
    context.tasks = unpack_nodes(m.fds[0].get(), ends);
    if (context.tasks.empty()) throw Error("receive", "the tree", EBADMSG);
    m.fds.clear();
    context.shell_ends.reserve(ends.size());
    for (const int end : ends)
      context.shell_ends.push_back(move_above(get_remote_fd(coordinator.get(), end), kLowestFloor));
    root_ = context.tasks.front().pid;
    fork_shells(context, {0}, false, 0);
  }

  /// Reaps until the last process of the namespace is gone; ends as the root task ended.
  [[noreturn]] void stay() {
    control_.reset();
    int root_status = 0;
    for (;;) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, __WALL);
      if (pid == root_) root_status = status;
      if (pid < 0 && errno == ECHILD) break;
    }
    ::_exit(WIFSIGNALED(root_status) ? 128 + WTERMSIG(root_status) : WEXITSTATUS(root_status));
  }

  Fd control_;
  pid_t root_ = 0;
};

}  // namespace

void run_tree_init(Fd control, Fd launcher) {
  try {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    begin_afresh({&control, &launcher});
    show_as(kTreeInit);
    // Tasks whose session and group were outside of their pid namespace share ours: those must not be the launcher's,
    // or the tree's kill(0, ...) would reach it.
    check(::setsid(), "start", "a session");
    send_message(launcher.get(), Msg::init, 0);
    launcher.reset();
    control = move_above(std::move(control), kLowestFloor);
    send_message(control.get(), Msg::hello, 0);
  } catch (...) {
    send_current_exception(control.get(), 0);
    ::_exit(1);
  }
  try {
    TreeInit(std::move(control)).obey();
  } catch (...) {
    // It hangs up, which says it.
  }
  ::_exit(1);
}

}  // namespace migrate
