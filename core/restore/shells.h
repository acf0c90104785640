// The coordinator's side of all task shells: makes them, changes them with the tree, talks to them.
#pragma once

#include <chrono>
#include <functional>
#include <map>

#include "core/restore/messages.h"
#include "core/restore/shell.h"

namespace migrate {

class Shells {
 public:
  /// `launcher` and `coordinator_pidfd` are handed on to all shells. `init`: the socket to the tree's init, which forks
  /// its root's shell; -1: we do.
  Shells(int launcher, int coordinator_pidfd, int init, const RestoreOptions& options);

  bool exist() const { return !ends_.empty(); }
  const std::vector<TaskNode>& tasks() const { return context_.tasks; }
  /// Forks the shells of all `tasks`, with sessions and groups. Throws Refusal for trees that cannot be built.
  void build(std::vector<TaskNode> tasks);
  /// Makes the shells that exist those of `tasks`; throws Error with the reason if they must be built anew.
  void follow(std::vector<TaskNode> tasks);
  /// The shells of tasks that are dead in `images` die likewise.
  void end_zombies(int images);

  void send(const TaskNode& task, Msg type, std::span<const int> fds = {});
  /// An order of words: `number` stands where a message has its pid.
  void order_with(const TaskNode& task, Msg type, int number, std::string_view text);
  /// The answer of one shell; a failure of the shell is thrown.
  Message answer(const TaskNode& task);
  /// To all living tasks at once, then their answers. `fds_of` may give each its own descriptors.
  using Answered = std::function<void(const TaskNode&, const Message&)>;
  void order_living(Msg type, std::span<const int> fds = {}, const Answered& answered = {});

  void kill();

 private:
  void order(const std::vector<int>& which, Msg type, std::span<const int> fds = {});
  /// Makes the sockets of the tasks for which `fresh`.
  void make_sockets(const std::vector<bool>& fresh);
  void settle_groups(const std::vector<int>& which);
  /// All tasks, with the numbers of the sockets that are new.
  Fd pack_tasks() const;
  void have_root_forked();

  ShellContext context_;
  std::map<pid_t, Fd> ends_;  ///< control sockets
  int init_;
  bool inherit_outside_, own_namespaces_;
  std::chrono::milliseconds timeout_;
};

}  // namespace migrate
