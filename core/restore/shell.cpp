#include "core/restore/shell.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <memory>
#include <set>

#include "core/image/magic.h"
#include "core/restore/messages.h"
#include "core/restore/namespaces.h"
#include "core/restore/plans.h"
#include "core/restore/shell_finish.h"
#include "core/restore/staging.h"
#include "images/core.pb.h"

namespace migrate {
namespace {

/// The life of one shell. It ends in the blob, or when its control socket hangs up.
class Shell {
 public:
  Shell(ShellContext& context, size_t index) : context_(context), node_(context.tasks[index]), index_(index) {}

  [[noreturn]] void run() {
    try {
      control_ = context_.shell_ends[index_].get();
      context_.coordinator_ends.clear();
      fork_children();
      for (size_t i = 0; i < context_.shell_ends.size(); ++i)
        if (i != index_) context_.shell_ends[i].reset();
      send_message(context_.launcher, Msg::hello, node_.pid);
      send_message(control_, Msg::ok, node_.pid);
      while (auto m = receive_message(control_)) {
        handle(*m);
        send_message(control_, Msg::ok, node_.pid);
        if (node_.zombie && m->type == Msg::let_helpers_go) end_as_zombie();
      }
    } catch (...) {
      send_current_exception(control_, node_.pid);
    }
    ::_exit(1);
  }

 private:
  void fork_children() {
    fork_shells(context_, node_.children, true, 0);
    if (node_.new_session) check(::setsid(), "start the session of task", std::to_string(node_.pid));
    fork_shells(context_, node_.children, false, 0);
  }

  void handle(Message& m) {
    switch (m.type) {
      case Msg::lead_groups: return lead_groups();
      case Msg::join_groups: return join_groups();
      case Msg::let_helpers_go: return let_helpers_go();
      case Msg::stage: return stage();
      case Msg::fill: return fill(m);
      case Msg::finish: return finish(m);
      default: throw Error("a task shell got a message that it does not know");
    }
  }

  void lead_groups() {
    if (node_.new_group) check(::setpgid(0, 0), "start the process group of task", std::to_string(node_.pid));
    if (node_.group_helper == 0) return;
    helper_ = fork_with_pid(node_.group_helper);
    if (helper_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
    check(::setpgid(helper_, helper_), "start process group", std::to_string(node_.group_helper));
  }

  void join_groups() {
    if (node_.join_group == 0 || ::getpgrp() == node_.join_group) return;
    check(::setpgid(0, node_.join_group), "join the process group of task", std::to_string(node_.pid));
  }

  void let_helpers_go() {
    ::prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
    if (helper_ <= 0) return;
    ::kill(helper_, SIGKILL);
    ::waitpid(helper_, nullptr, 0);
    helper_ = 0;
  }

  [[noreturn]] void end_as_zombie() {
    img::core_entry core;
    context_.images.need(image_name("core", static_cast<uint64_t>(node_.pid)), magic::kCore, core);
    ::prctl(PR_SET_NAME, core.tc().comm().c_str());
    const int status = static_cast<int>(core.tc().exit_code());
    if (!WIFSIGNALED(status)) ::_exit(WEXITSTATUS(status));
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    ::signal(WTERMSIG(status), SIG_DFL);
    sigset_t empty;
    ::sigemptyset(&empty);
    ::sigprocmask(SIG_SETMASK, &empty, nullptr);
    ::kill(::getpid(), WTERMSIG(status));
    ::_exit(128 + WTERMSIG(status));
  }

  void stage() {
    task_ = std::make_unique<TaskImage>(read_task(context_.images, node_));
    check_privileges(*task_);
    check_kernel_mappings(*task_, own_kernel_mappings());
    staging_ = std::make_unique<Staging>(context_, *task_);
    if (context_.userfault) send_target(context_.launcher, staging_->make_target());
  }

  void fill(Message& m) {
    if (m.fds.empty() || !staging_) throw Error("receive", "the image folder", EBADMSG);
    // Image files are read into the memory itself: a registered range would make that read wait for us.
    staging_->unregister();
    PageImages pages(m.fds[0].get());
    staging_->fill_from(pages);
  }

  void finish(Message& m) {
    if (m.fds.size() != 2 || !staging_) throw Error("receive", "the final images", EBADMSG);
    const ImageSet images = unpack_images(m.fds[0].get());
    const std::map<uint32_t, int> opened = unpack_table(m.fds[1].get());
    m.fds.clear();
    finish_shell(context_, node_, images, opened, *staging_, *task_, control_);
  }

  ShellContext& context_;
  const TaskNode& node_;
  size_t index_;
  int control_ = -1;
  pid_t helper_ = 0;
  std::unique_ptr<TaskImage> task_;
  std::unique_ptr<Staging> staging_;
};

void fork_shell(ShellContext& context, int index, uint64_t parent_flag) {
  if (fork_with_pid(context.tasks[static_cast<size_t>(index)].pid, parent_flag) != 0) return;
  Shell(context, static_cast<size_t>(index)).run();
}

/// A process that was given the pid of a session's dead leader starts the session, forks the members and ends; they
/// become ours, because we are a subreaper or the init of the pid namespace.
void fork_by_session_helper(ShellContext& context, pid_t session, const std::vector<int>& members) {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  const pid_t helper = fork_with_pid(session);
  if (helper == 0) {
    int status = 0;
    try {
      check(::setsid(), "start session", std::to_string(session));
      for (const int i : members) fork_shell(context, i, 0);
    } catch (...) {
      send_current_exception(context.shell_ends[static_cast<size_t>(members.front())].get(), session);
      status = 1;
    }
    ::_exit(status);
  }
  int status = 0;
  check(::waitpid(helper, &status, 0), "wait for the leader of session", std::to_string(session));
  if (status != 0) throw Error("session " + std::to_string(session) + " could not be started");
}

}  // namespace

void fork_shells(ShellContext& context, const std::vector<int>& which, bool early, uint64_t parent_flag) {
  std::set<pid_t> helped;
  for (const int i : which) {
    const TaskNode& node = context.tasks[static_cast<size_t>(i)];
    if (node.before_setsid != early) continue;
    if (node.session_helper == 0) {
      fork_shell(context, i, parent_flag);
    } else if (helped.insert(node.session_helper).second) {
      std::vector<int> members;
      std::copy_if(which.begin(), which.end(), std::back_inserter(members), [&](int m) {
        return context.tasks[static_cast<size_t>(m)].session_helper == node.session_helper;
      });
      fork_by_session_helper(context, node.session_helper, members);
    }
  }
}

Fd move_above(Fd fd, int floor) {
  return Fd(check(::fcntl(fd.get(), F_DUPFD_CLOEXEC, floor), "move a descriptor above", std::to_string(floor)));
}

}  // namespace migrate
