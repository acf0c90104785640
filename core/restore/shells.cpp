#include "core/restore/shells.h"

#include <linux/sched.h>
#include <signal.h>

#include <numeric>

namespace migrate {

Shells::Shells(int launcher, int coordinator_pidfd, int init, const RestoreOptions& options)
    : init_(init),
      inherit_outside_(options.shell_job && !options.own_namespaces),
      own_namespaces_(options.own_namespaces),
      timeout_(options.timeout) {
  context_.own_namespaces = options.own_namespaces;
  context_.lazy = options.lazy;
  context_.launcher = launcher;
  context_.coordinator_pidfd = coordinator_pidfd;
}

void Shells::make_sockets(const std::vector<bool>& fresh) {
  context_.shell_ends.clear();
  context_.shell_ends.resize(context_.tasks.size());
  for (size_t i = 0; i < context_.tasks.size(); ++i) {
    if (!fresh[i]) continue;
    SocketPair pair = SocketPair::make();
    ends_[context_.tasks[i].pid] = move_above(std::move(pair.first), kLowestFloor);
    context_.shell_ends[i] = move_above(std::move(pair.second), kLowestFloor);
  }
}

void Shells::build(std::vector<TaskNode> tasks) {
  context_.tasks = std::move(tasks);
  plan_tree(context_.tasks, inherit_outside_);
  const TaskNode& root = context_.tasks.front();
  // Session 0: the dump saw a leader of another pid namespace.
  if (!own_namespaces_ && (root.session_helper != 0 || (root.sid == 0 && !inherit_outside_))) {
    throw Refusal("task " + std::to_string(root.pid) + " belongs to a session that began outside of the tree",
                  "use --shell-job to restore it into the session you run in");
  }
  make_sockets(std::vector<bool>(context_.tasks.size(), true));
  if (init_ >= 0) {
    have_root_forked();
  } else {
    fork_shells(context_, {0}, false, CLONE_PARENT);
  }
  context_.shell_ends.clear();
  for (const TaskNode& task : context_.tasks) answer(task);
  std::vector<int> all(context_.tasks.size());
  std::iota(all.begin(), all.end(), 0);
  settle_groups(all);
}

Fd Shells::pack_tasks() const {
  std::vector<int> numbers;
  for (const Fd& end : context_.shell_ends) numbers.push_back(end.get());
  return pack_nodes(context_.tasks, numbers);
}

void Shells::have_root_forked() {
  const Fd packed = pack_tasks();
  const std::array<int, 3> fds{packed.get(), context_.launcher, context_.coordinator_pidfd};
  send_message(init_, Msg::tree, 0, as_bytes_of(context_.lazy ? "l" : ""), fds);
  (void)receive_answer(init_, Deadline::in(timeout_), kTreesInit);
}

void Shells::follow(std::vector<TaskNode> tasks) {
  const TreeChange change = plan_change(context_.tasks, tasks);
  for (const TreeChange::Gone& gone : change.gone) {
    send_message(ends_.at(gone.parent).get(), Msg::end_child, gone.pid);
    TaskNode parent;
    parent.pid = gone.parent;
    answer(parent);
    ends_.erase(gone.pid);
  }
  context_.tasks = std::move(tasks);
  if (change.affected.empty()) return;
  make_sockets(change.fresh);
  std::vector<int> concerned = change.affected;
  for (size_t i = 0; i < context_.tasks.size(); ++i)
    if (change.fresh[i]) concerned.push_back(static_cast<int>(i));
  const Fd packed = pack_tasks();
  const std::array<int, 1> fds{packed.get()};
  order(change.affected, Msg::tree, fds);
  context_.shell_ends.clear();
  for (size_t i = 0; i < context_.tasks.size(); ++i)
    if (change.fresh[i]) answer(context_.tasks[i]);
  settle_groups(concerned);
}

void Shells::settle_groups(const std::vector<int>& which) {
  for (const Msg step : {Msg::lead_groups, Msg::join_groups, Msg::let_helpers_go}) order(which, step);
}

void Shells::end_zombies(int images) {
  std::vector<int> zombies;
  for (size_t i = 0; i < context_.tasks.size(); ++i)
    if (context_.tasks[i].zombie) zombies.push_back(static_cast<int>(i));
  const std::array<int, 1> fds{images};
  order(zombies, Msg::end_as_zombie, fds);
}

void Shells::send(const TaskNode& task, Msg type, std::span<const int> fds) {
  send_message(ends_.at(task.pid).get(), type, 0, {}, fds);
}

void Shells::order_with(const TaskNode& task, Msg type, int number, std::string_view text) {
  send_text(ends_.at(task.pid).get(), type, number, text);
}

Message Shells::answer(const TaskNode& task) {
  return receive_answer(ends_.at(task.pid).get(), Deadline::in(timeout_),
                        "the shell of task " + std::to_string(task.pid));
}

void Shells::order(const std::vector<int>& which, Msg type, std::span<const int> fds) {
  for (const int i : which) send(context_.tasks[static_cast<size_t>(i)], type, fds);
  for (const int i : which) answer(context_.tasks[static_cast<size_t>(i)]);
}

void Shells::order_living(Msg type, std::span<const int> fds, const Answered& answered) {
  for (const TaskNode& task : context_.tasks)
    if (!task.zombie) send(task, type, fds);
  for (const TaskNode& task : context_.tasks) {
    if (task.zombie) continue;
    const Message m = answer(task);
    if (answered) answered(task, m);
  }
}

void Shells::kill() {
  for (const auto& [pid, end] : ends_) ::kill(pid, SIGKILL);
}

}  // namespace migrate
