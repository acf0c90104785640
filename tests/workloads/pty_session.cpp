// Sessions on pseudo-terminals: a leader with its controlling terminal and /dev/tty, a foreground group, a background
// group, a stopped one, a member that has given the terminal up, one that was there before it; what is typed reaches
// the foreground group only, as input and as signal. A second session has a foreground group that has ended.
#include <signal.h>
#include <sys/wait.h>

#include <string>

#include "terminal.h"

using namespace workload;

namespace {

enum Role { leader, foreground, background, stopped, without, early, other_leader, roles };
constexpr const char* kNames[] = {"the leader",     "the foreground",       "the background",  "the stopped",
                                  "who gave it up", "who was there before", "the other leader"};

struct Member {
  std::atomic<pid_t> pid;
  std::atomic<int> asked, answered, interrupts, hang_ups;
  std::atomic<pid_t> group;  // tcgetpgrp of /dev/tty, -1 without a controlling terminal
  std::atomic<pid_t> session;
  std::atomic<int> bytes;  // read from the terminal
};

Member* members;
Role self;

void on_signal(int signal) {
  if (signal == SIGINT) ++members[self].interrupts;
  if (signal == SIGHUP) ++members[self].hang_ups;
}

/// A member's life: says what it sees of its terminal when it is asked.
[[noreturn]] void live(Role role, int slave) {
  self = role;
  Member& me = members[role];
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGHUP, &action, nullptr);
  me.pid = getpid();
  const pid_t parent = getppid();
  while (getppid() == parent) {
    if (role == foreground && tcgetpgrp(slave) == getpgrp()) {  // else a read would stop us
      char text[64];
      const ssize_t n = read(slave, text, sizeof text);
      if (n > 0) me.bytes += static_cast<int>(n);
    }
    if (me.asked != me.answered) {
      const int tty = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
      me.group = tty == -1 ? -1 : tcgetpgrp(tty);
      me.session = getsid(0);
      if (tty != -1) close(tty);
      me.answered = me.asked.load();
    }
    sleep_ms(2);
  }
  _exit(0);
}

template <class Body>
pid_t fork_as(Body body) {
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    try {
      body();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\n", e.what());
    }
    _exit(1);
  }
  return child;
}

void into_group(pid_t child) { must(setpgid(child, child), "setpgid"); }

[[noreturn]] void lead(int slave) {
  must(setsid(), "setsid");
  fork_as([&] { live(early, slave); });
  must(ioctl(slave, TIOCSCTTY, 0), "TIOCSCTTY");
  const int tty = must(open("/dev/tty", O_RDWR | O_CLOEXEC), "open /dev/tty");
  signal(SIGTTOU, SIG_IGN);
  const pid_t front = fork_as([&] {
    into_group(0);
    live(foreground, slave);
  });
  const pid_t back = fork_as([&] { live(background, slave); });
  const pid_t halted = fork_as([&] { live(stopped, slave); });
  for (const pid_t child : {front, back, halted}) into_group(child);
  fork_as([&] {
    const int own = must(open("/dev/tty", O_RDWR | O_CLOEXEC), "open /dev/tty");
    must(ioctl(own, TIOCNOTTY), "TIOCNOTTY");
    close(own);
    live(without, slave);
  });
  must(tcsetpgrp(tty, front), "tcsetpgrp");
  await([&] { return members[stopped].pid != 0; }, "the stopped one");
  must(kill(halted, SIGSTOP), "kill");
  must(waitpid(halted, nullptr, WUNTRACED), "waitpid");
  live(leader, slave);
}

/// A job that has ended and was collected, and the shell has not taken the terminal back.
[[noreturn]] void lead_other(int slave) {
  must(setsid(), "setsid");
  must(ioctl(slave, TIOCSCTTY, 0), "TIOCSCTTY");
  signal(SIGTTOU, SIG_IGN);
  const pid_t job = fork_as([] { pause(); });
  into_group(job);
  must(tcsetpgrp(slave, job), "tcsetpgrp");
  kill(job, SIGKILL);
  waitpid(job, nullptr, 0);
  live(other_leader, slave);
}

class Sessions {
 public:
  Sessions() {
    members = shared_memory<Member>(roles);
    main_ = new_pty();
    other_ = new_pty();
    termios t = modes_of(main_.slave);
    t.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
    t.c_cc[VMIN] = 0;
    must(tcsetattr(main_.slave, TCSANOW, &t), "tcsetattr");
    leader_ = fork_as([&] {
      close(main_.master);
      lead(main_.slave);
    });
    fork_as([&] {
      close(other_.master);
      lead_other(other_.slave);
    });
    await(
        [] {
          for (int i = 0; i < roles; ++i)
            if (members[i].pid == 0) return false;
          return true;
        },
        "all to be there");
    await([&] { return stopped_now(); }, "one to be stopped");
    ask();
  }

  void verify() {
    expect_equal(ioctl_pid(TIOCGSID), members[leader].pid.load(), "the session of the terminal");
    expect_equal(ioctl_pid(TIOCGPGRP), members[foreground].pid.load(), "the foreground group");
    ask();
    for (const Role role : {leader, foreground, background, without, early, other_leader}) {
      const pid_t group = role == without || role == early ? -1
                          : role == other_leader           ? members[role].group.load()
                                                           : members[foreground].pid.load();
      expect_equal(members[role].group.load(), group, std::string("the foreground group, to ") + kNames[role]);
      expect_equal(members[role].session.load(), members[role == other_leader ? other_leader : leader].pid.load(),
                   std::string("the session of ") + kNames[role]);
      expect_equal(members[role].hang_ups.load(), 0, std::string("hang-ups of ") + kNames[role]);
    }
    expect(members[other_leader].group > 0, "the other session has no foreground group");
    expect(stopped_now(), "the stopped one runs");
    type();
  }

 private:
  static bool stopped_now() {
    char text[256] = {};
    const int fd = open(("/proc/" + std::to_string(members[stopped].pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC);
    const bool was_read = read(fd, text, sizeof text - 1) > 0;
    close(fd);
    return was_read && std::string(text).find(") T ") != std::string::npos;
  }

  pid_t ioctl_pid(unsigned long request) const {
    pid_t pid = 0;
    must(ioctl(main_.master, request, &pid), "ask the terminal");
    return pid;
  }

  void ask() {
    for (int i = 0; i < roles; ++i)
      if (i != stopped) ++members[i].asked;
    await(
        [] {
          for (int i = 0; i < roles; ++i)
            if (i != stopped && members[i].answered != members[i].asked) return false;
          return true;
        },
        "all to answer");
  }

  void type() {
    typed_ += 4;
    put_text(main_.master, "line");
    await([&] { return members[foreground].bytes == typed_; }, "the foreground to read what was typed");
    put_text(main_.master, "\x03");
    ++interrupts_;
    await([&] { return members[foreground].interrupts == interrupts_; }, "the foreground to be interrupted");
    for (const Role role : {leader, background, without, early})
      expect_equal(members[role].interrupts.load(), 0, std::string("interrupts of ") + kNames[role]);
  }

  Pty main_, other_;
  pid_t leader_ = 0;
  int typed_ = 0, interrupts_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Sessions sessions;
        w.serve([&] { sessions.verify(); });
      },
      "pty_session");
}
