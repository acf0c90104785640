#include "core/restore/shell.h"

#include <linux/keyctl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <set>

#include "core/base/proc_values.h"
#include "core/image/magic.h"
#include "core/ipc/ipc_restore.h"
#include "core/restore/lazy_restore.h"
#include "core/restore/messages.h"
#include "core/restore/namespaces.h"
#include "core/restore/plans.h"
#include "core/restore/restorable.h"
#include "core/restore/session_terminal.h"
#include "core/restore/shell_finish.h"
#include "core/restore/staging.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"

namespace migrate {
namespace {

/// The life of one shell. It ends in the blob, or when its control socket hangs up.
class Shell {
 public:
  Shell(ShellContext& context, size_t index)
      : context_(context), node_(context.tasks[index]), index_(index), staging_(node_.pid) {}

  [[noreturn]] void run() {
    control_ = context_.shell_ends[index_].get();
    try {
      leave_keyrings();
      close_inherited();
      fork_children();
      forget_ends();
      send_message(context_.launcher, Msg::hello, node_.pid);
      send_message(control_, Msg::ok, node_.pid);
      while (auto m = receive_message(control_)) {
        const bool cold = handle(*m);
        answer(cold);
        if (m->type == Msg::end_as_zombie) end_as_zombie();
      }
    } catch (...) {
      send_current_exception(control_, node_.pid);
    }
    ::_exit(1);
  }

 private:
  /// The session keyring is inherited, and with it all keys of whoever started us. Each task gets an empty one of its
  /// own (keys are refused, refuse_keys()): of different users they must not be.
  static void leave_keyrings() {
    if (::syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr) >= 0) return;
    // Without keys, or where a seccomp filter forbids them, to the task as to us, there is nothing to leave.
    if (errno != ENOSYS && errno != EPERM) throw Error("make", "a session keyring", errno);
  }

  void close_inherited() {
    std::vector<int> kept{0, 1, 2, context_.launcher, context_.coordinator_pidfd};
    for (const Fd& fd : context_.shell_ends) kept.push_back(fd.get());
    close_all_but(std::move(kept));
  }

  void fork_children() {
    fork_shells(context_, node_.children, true, 0);
    if (node_.new_session) start_session();
    fork_shells(context_, node_.children, false, 0);
    if (node_.drop_terminal) drop_terminal();
  }

  /// What a session's leader has as controlling terminal its children inherit, and cannot get in another way.
  void start_session() {
    check(::setsid(), "start the session of task", std::to_string(node_.pid));
    if (node_.terminal < 0) return;
    const Fd terminal = fetch(node_.terminal_fd, std::max(kLowestFloor, context_.room.floor));
    take_terminal(terminal.get(), node_.pid);
  }

  /// The control sockets of shells that we forked.
  void forget_ends() {
    for (size_t i = 0; i < context_.shell_ends.size(); ++i) {
      if (context_.shell_ends[i].get() == control_) (void)context_.shell_ends[i].release();
      context_.shell_ends[i].reset();
    }
  }

  void answer(bool cold) {
    const std::array<int, 2> fds{lazy_.get(), lazy_shared_.get()};
    const size_t made = !lazy_ ? 0 : !lazy_shared_ ? 1 : 2;
    send_message(control_, Msg::ok, node_.pid, as_bytes_of(cold ? "c" : ""), std::span(fds).first(made));
    lazy_.reset();
    lazy_shared_.reset();
  }

  /// True where memory was staged that holds nothing yet, or no more.
  bool handle(Message& m) {
    switch (m.type) {
      case Msg::lead_groups:
        return lead_groups(), false;
      case Msg::join_groups:
        return join_groups(), false;
      case Msg::let_helpers_go:
        return let_helpers_go(), false;
      case Msg::tree:
        return follow_tree(m), false;
      case Msg::end_child:
        return end_child(m.pid), false;
      case Msg::areas:
        return follow_areas(m);
      case Msg::discard:
        return discard(m), false;
      case Msg::reserve:
        return staging_.reserve(unpack_areas(fd_of(m, 0))), false;
      case Msg::stage:
        return stage(m);
      case Msg::make_sockets:
        return make_unix_sockets(m), false;
      case Msg::foreground:
        return set_foreground(m), false;
      case Msg::open_terminal:
        return open_terminal(m), false;
      case Msg::end_as_zombie:
        return images_ = unpack_images(fd_of(m, 0), &node_), false;
      case Msg::fill:
        return fill(m), false;
      case Msg::finish:
        finish(m);
      default:
        throw Error("a task shell got a message that it does not know");
    }
  }

  static int fd_of(const Message& m, size_t i) {
    if (i >= m.fds.size()) throw Error("receive", "a message of the coordinator", EBADMSG);
    return m.fds[i].get();
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

  /// The tree has changed: `m` brings all tasks with what each must do. Forks those children that are new.
  void follow_tree(const Message& m) {
    std::vector<int> ends;
    context_.tasks = unpack_nodes(fd_of(m, 0), ends);
    const auto self = std::find_if(context_.tasks.begin(), context_.tasks.end(),
                                   [this](const TaskNode& t) { return t.pid == node_.pid; });
    if (self == context_.tasks.end()) throw Error("receive", "the changed tree", EBADMSG);
    index_ = static_cast<size_t>(self - context_.tasks.begin());
    std::erase_if(self->children, [&](int c) { return ends[static_cast<size_t>(c)] < 0; });
    node_ = *self;
    context_.shell_ends.clear();
    context_.shell_ends.resize(context_.tasks.size());
    fetch_ends(node_.children, ends);
    fork_children();
    forget_ends();
  }

  void fetch_ends(const std::vector<int>& which, const std::vector<int>& ends) {
    for (const int i : which) {
      const auto at = static_cast<size_t>(i);
      context_.shell_ends[at] = fetch(ends[at], std::max(kLowestFloor, context_.room.floor));
      fetch_ends(context_.tasks[at].children, ends);
    }
  }

  /// A descriptor of the coordinator's, numbered `floor` or higher here.
  Fd fetch(int number, int floor) {
    Fd fd(static_cast<int>(check(::syscall(SYS_pidfd_getfd, context_.coordinator_pidfd, number, 0),
                                 "fetch a descriptor of the coordinator for task", std::to_string(node_.pid))));
    return move_above(std::move(fd), floor);
  }

  void end_child(pid_t pid) {
    // It may tell us by any signal, which the task that we become must not get.
    // With those that the C library keeps for itself.
    constexpr size_t kMaskBytes = 8;
    const uint64_t all = ~uint64_t{0};
    uint64_t before = 0;
    ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, kMaskBytes);
    ::kill(pid, SIGKILL);
    check(::waitpid(pid, nullptr, __WALL), "wait for the end of task", std::to_string(pid));
    const timespec none{};
    std::set<int> others;
    for (siginfo_t info; ::syscall(SYS_rt_sigtimedwait, &all, &info, &none, kMaskBytes) > 0;)
      if (info.si_code != CLD_KILLED) others.insert(info.si_signo);
    for (const int signal : others) ::kill(::getpid(), signal);
    ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, nullptr, kMaskBytes);
  }

  /// waitid(2) tells of whom a dead task was. That user may stop us from here on, or look: we have nothing any more.
  void become_its_user() {
    auto reader = images_.read("migrate-ext.img", magic::kMigrateExt);
    ext::ThreadExt e;
    while (reader && reader->next(e) && static_cast<pid_t>(e.tid()) != node_.pid) e.Clear();
    if (!e.task().has_uid() || static_cast<pid_t>(e.tid()) != node_.pid) return;
    ::close_range(0, ~0U, 0);
    // Where it cannot be had (a user namespace), its code is still told.
    if (::setresgid(e.task().gid(), e.task().gid(), e.task().gid()) == 0)
      (void)!::setresuid(e.task().uid(), e.task().uid(), e.task().uid());
  }

  [[noreturn]] void end_as_zombie() {
    img::core_entry core;
    images_.need(image_name("core", static_cast<uint64_t>(node_.pid)), magic::kCore, core);
    ::prctl(PR_SET_NAME, core.tc().comm().c_str());
    become_its_user();
    ::prctl(PR_SET_DUMPABLE, 0);  // a core_pattern that is a program does not ask for the limit
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

  bool follow_areas(const Message& m) {
    const bool cold = staging_.follow(unpack_areas(fd_of(m, 0)));
    send_target(context_.launcher, staging_.make_target());
    return cold;
  }

  void discard(const Message& m) {
    std::vector<AddressRange> ranges;
    for (const TreeLayout::Area& a : unpack_areas(fd_of(m, 0))) ranges.push_back({a.start, a.end});
    staging_.discard(ranges);
  }

  bool stage(Message& m) {
    node_.threads = unpack_threads(fd_of(m, 2));
    images_ = unpack_images(fd_of(m, 0), &node_);
    const Resources resources = unpack_resources(fd_of(m, 1));
    m.fds.clear();
    move_descriptors(resources.room);
    if (resources.own_ipc) join_ipc_namespace();
    task_ = std::make_unique<TaskImage>(read_task(images_, node_));
    fetch_resources(resources);
    check_privileges(*task_);
    check_kernel_mappings(*task_, own_kernel_mappings());
    check_mapping_kinds(*task_);
    if (context_.lazy) {
      lazy_ = make_lazy_userfaultfd();
      if (may_have_lazy_shared(*task_)) lazy_shared_ = make_lazy_userfaultfd();
      staging_.keep_pages_small();
    }
    const bool cold = staging_.settle(context_, *task_, images_);
    send_target(context_.launcher, staging_.make_target());
    return cold;
  }

  void join_ipc_namespace() {
    check(::setns(context_.coordinator_pidfd, CLONE_NEWIPC), "join the IPC namespace of", "the tree");
    ipc_ = read_ipc_images(images_);
    if (ipc_) make_undos(*ipc_, node_.pid);
  }

  void move_descriptors(const DescriptorRoom& room) {
    context_.room = room;
    for (int* fd : {&control_, &context_.launcher, &context_.coordinator_pidfd})
      if (*fd < room.floor || *fd >= room.end) *fd = move_above(Fd(*fd), room.floor).release();
  }

  /// Sockets that tell of this task.
  void make_unix_sockets(const Message& m) {
    PeerCredentials who;
    std::vector<SocketStep> steps = unpack_sockets(fd_of(m, 0), who);
    std::vector<Fd> fetched;
    for (SocketStep& step : steps)
      for (int* number : {&step.socket, &step.file})
        if (*number >= 0) *number = fetched.emplace_back(fetch(*number, context_.room.floor)).get();
    const std::vector<Fd> made = make_sockets(who, steps);
    std::vector<int> numbers;
    numbers.reserve(made.size());
    for (const Fd& fd : made) numbers.push_back(fd.get());
    send_message(control_, Msg::make_sockets, node_.pid, {}, numbers);
  }

  void set_foreground(const Message& m) {
    const Fd terminal = fetch(m.pid, context_.room.floor);
    give_foreground(terminal.get(), parse_number<pid_t>(m.text(), "a process group"));
  }

  void open_terminal(const Message& m) {
    const Fd terminal = open_path("/dev/tty", parse_number<int>(m.text(), "open flags"));
    const int number = terminal.get();
    send_message(control_, Msg::open_terminal, node_.pid, {}, std::span(&number, 1));
  }

  void fetch_file(const Resources& from, uint64_t id, int access) {
    const MappedFile key{id, access};
    if (context_.files.contains(key)) return;
    const auto it = from.files.find(key);
    if (it == from.files.end()) throw Corrupt("the memory images", "a mapping's file is unknown");
    context_.files.emplace(key, fetch(it->second, context_.room.floor).release());
  }

  void fetch_resources(const Resources& from) {
    fetch_file(from, task_->mm.exe_file_id(), O_RDONLY);
    fetch_file(from, task_->fs.cwd_id(), kWorkFolder);
    if (task_->fs.root_id() != 0) fetch_file(from, task_->fs.root_id(), kRootFolder);
    for (const ImageVma& v : task_->vmas) {
      if (v.has_file()) {
        fetch_file(from, v.object, v.open_flags);
      } else if (v.has(kVmaAnonShared) && !context_.shared_memory.contains(v.object)) {
        const int fd = fetch(from.shared_memory.at(v.object), context_.room.floor).release();
        context_.shared_memory.emplace(v.object, fd);
      }
    }
  }

  void fill(Message& m) {
    if (!task_) throw Error("receive", "the image folder", EBADMSG);
    PageImages pages(fd_of(m, 0));
    staging_.fill_from(*task_, pages, context_.lazy ? lazy_in_images(*task_, pages) : PageSet());
  }

  [[noreturn]] void finish(Message& m) {
    if (!task_) throw Error("receive", "the final images", EBADMSG);
    const ImageSet images = unpack_images(fd_of(m, 0), &node_);
    const std::map<uint32_t, int> opened = unpack_table(fd_of(m, 1));
    m.fds.clear();
    if (ipc_) touch_semaphores(*ipc_, node_.pid);
    finish_shell(context_, node_, images, opened, staging_, *task_, control_);
  }

  ShellContext& context_;
  TaskNode node_;
  size_t index_;
  int control_ = -1;
  Fd lazy_, lazy_shared_;  ///< on their way to the coordinator
  pid_t helper_ = 0;
  ImageSet images_;
  std::unique_ptr<TaskImage> task_;
  std::optional<IpcImages> ipc_;
  Staging staging_;
};

void fork_shell(ShellContext& context, int index, uint64_t parent_flag) {
  const TaskNode& node = context.tasks[static_cast<size_t>(index)];
  if (fork_with_pid(node.pid, parent_flag, node.parent < 0 ? SIGCHLD : node.exit_signal) != 0) return;
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
      std::copy_if(which.begin(), which.end(), std::back_inserter(members),
                   [&](int m) { return context.tasks[static_cast<size_t>(m)].session_helper == node.session_helper; });
      fork_by_session_helper(context, node.session_helper, members);
    }
  }
}

Fd move_above(Fd fd, int floor) {
  return Fd(check(::fcntl(fd.get(), F_DUPFD_CLOEXEC, floor), "move a descriptor above", std::to_string(floor)));
}

}  // namespace migrate
