#include "core/restore/socket_orders.h"

#include <linux/sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>

namespace migrate {
namespace {

std::vector<Fd> by_shell(Shells& shells, const TaskNode& task, const PeerCredentials& who,
                         std::span<const SocketStep> steps) {
  const Fd packed = pack_sockets(who, steps);
  const std::array<int, 1> fds{packed.get()};
  shells.send(task, Msg::make_sockets, fds);
  Message made = shells.answer(task);
  shells.answer(task);
  return std::move(made.fds);
}

/// As fork(2), with a pid; -1 if that cannot be had. A tree's own ids are free or its shells' by now: no waiting.
pid_t fork_as(pid_t pid) {
  clone_args args{};
  args.set_tid = reinterpret_cast<uint64_t>(&pid);
  args.set_tid_size = 1;
  return static_cast<pid_t>(::syscall(SYS_clone3, &args, sizeof args));
}

[[noreturn]] void make_and_end(int socket, const PeerCredentials& who, std::span<const SocketStep> steps) {
  try {
    const std::vector<Fd> made = make_sockets(who, steps);
    std::vector<int> numbers;
    for (const Fd& fd : made) numbers.push_back(fd.get());
    send_message(socket, Msg::ok, 0, {}, numbers);
  } catch (...) {
    send_current_exception(socket, 0);
  }
  ::_exit(0);
}

/// Empty if the pid cannot be had.
std::optional<std::vector<Fd>> by_stand_in(const PeerCredentials& who, std::span<const SocketStep> steps) {
  SocketPair talk = SocketPair::make();
  const pid_t child = fork_as(static_cast<pid_t>(who.pid));
  if (child < 0) return std::nullopt;
  if (child == 0) make_and_end(talk.second.get(), who, steps);
  talk.second.reset();
  std::optional<Message> made = receive_message(talk.first.get());
  ::waitpid(child, nullptr, __WALL);
  if (!made) throw Error("make", "Unix sockets as process " + std::to_string(who.pid), EPIPE);
  rethrow_failure(*made);
  return std::move(made->fds);
}

}  // namespace

std::vector<Fd> order_sockets(Shells& shells, const PeerCredentials& who, std::span<const SocketStep> steps,
                              Logger& log) {
  const auto task = std::find_if(shells.tasks().begin(), shells.tasks().end(), [&](const TaskNode& t) {
    return !t.zombie && static_cast<uint32_t>(t.pid) == who.pid;
  });
  if (task != shells.tasks().end()) return by_shell(shells, *task, who, steps);
  if (who.pid != 0 && who.pid <= INT32_MAX && static_cast<pid_t>(who.pid) != ::getpid()) {
    if (auto made = by_stand_in(who, steps)) return std::move(*made);
    log.info("process {} made Unix sockets of the tree and is not in it: they tell of process {} now", who.pid,
             ::getpid());
  }
  return make_sockets(who, steps);
}

}  // namespace migrate
