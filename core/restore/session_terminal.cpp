#include "core/restore/session_terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <string>

#include "core/files/terminal_restore.h"
#include "core/files/terminal_state.h"
#include "core/restore/namespaces.h"

namespace migrate {
namespace {

/// A background process that changes a terminal is stopped (SIGTTOU), unless it blocks that.
class WithoutStops {
 public:
  WithoutStops() {
    sigset_t stop;
    ::sigemptyset(&stop);
    ::sigaddset(&stop, SIGTTOU);
    ::sigprocmask(SIG_BLOCK, &stop, &before_);
  }
  ~WithoutStops() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  WithoutStops(const WithoutStops&) = delete;
  WithoutStops& operator=(const WithoutStops&) = delete;

 private:
  sigset_t before_{};
};

bool set_group(int terminal, pid_t group) { return ::ioctl(terminal, TIOCSPGRP, &group) == 0; }

const TaskNode* leader_with(const Shells& shells, uint32_t index) {
  const auto leader = std::ranges::find_if(shells.tasks(), [&](const TaskNode& t) {
    return !t.zombie && t.pid == t.sid && t.terminal == static_cast<int>(index);
  });
  return leader == shells.tasks().end() ? nullptr : &*leader;
}

}  // namespace

void take_terminal(int terminal, pid_t task) {
  check(::ioctl(terminal, TIOCSCTTY, 0), "take the controlling terminal of task", std::to_string(task));
}

void drop_terminal() {
  const Fd own(::open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (own) check(::ioctl(own.get(), TIOCNOTTY), "give up", "a controlling terminal");
}

void give_foreground(int terminal, pid_t group) {
  const WithoutStops blocked;
  if (group > 0 && set_group(terminal, group)) return;
  if (group > 0 && errno != ESRCH) throw Error("give the terminal to process group", std::to_string(group), errno);
  // All of it have ended, and nobody has taken the terminal back yet.
  const pid_t helper = fork_with_pid(group > 0 ? group : 0);
  if (helper == 0)
    for (;;) ::pause();
  const bool set = ::setpgid(helper, helper) == 0 && set_group(terminal, helper);
  const int failed = errno;
  ::kill(helper, SIGKILL);
  ::waitpid(helper, nullptr, 0);
  if (!set) throw Error("give the terminal to process group", std::to_string(group), failed);
}

void set_foreground_groups(Shells& shells, TerminalPairs& terminals, const ImageSet& images) {
  for (const SessionTerminal& session : session_terminals(images)) {
    const TaskNode* leader = leader_with(shells, session.index);
    if (leader == nullptr || (session.group == 0 && !session.no_group)) continue;
    const std::string group = std::to_string(session.no_group ? -1 : session.group);
    shells.order_with(*leader, Msg::foreground, terminals.slave(session.index), group);
    shells.answer(*leader);
  }
}

Fd open_controlling(Shells& shells, TerminalPairs& terminals, uint32_t index, int flags) {
  const TaskNode* leader = leader_with(shells, index);
  if (leader == nullptr) return open_slave(terminals.get(index).master.get(), flags, slave_path(index));
  shells.order_with(*leader, Msg::open_terminal, 0, std::to_string(flags));
  Message opened = shells.answer(*leader);
  shells.answer(*leader);
  if (opened.fds.size() != 1) throw Error("receive", "a controlling terminal", EBADMSG);
  return std::move(opened.fds.front());
}

}  // namespace migrate
