// A tree with children in the same and other process groups and sessions, a grandchild, zombies and a stopped child.
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <sstream>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

struct Member {
  pid_t pid, parent, group, session;
  std::atomic<uint32_t> answered;
  pid_t now_pid, now_parent, now_group, now_session;
};

struct Shared {
  std::atomic<uint32_t> asked;
  Member members[6];
};

[[noreturn]] void member_main(Shared& s, size_t index) {
  Member& m = s.members[index];
  m.pid = getpid();
  m.parent = getppid();
  m.group = getpgrp();
  m.session = getsid(0);
  m.answered = 1;
  uint32_t seen = 0;
  const pid_t parent = getppid();
  while (getppid() == parent) {
    if (s.asked != seen) {
      seen = s.asked;
      m.now_pid = getpid();
      m.now_parent = getppid();
      m.now_group = getpgrp();
      m.now_session = getsid(0);
      m.answered = seen + 1;
    }
    sleep_ms(3);
  }
  _exit(0);
}

char state_of(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(in, line);
  const size_t end = line.rfind(')');
  return end == std::string::npos || end + 2 >= line.size() ? '?' : line[end + 2];
}

pid_t start(Shared& s, size_t index, void (*before)(Shared&)) {
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    if (before) before(s);
    member_main(s, index);
  }
  await([&] { return s.members[index].answered == 1; }, "child " + std::to_string(index));
  return child;
}

struct Children {
  pid_t exited, killed, stopped;
};

void verify_members(Shared& s) {
  const uint32_t n = ++s.asked;
  for (size_t i = 0; i < 5; ++i) {
    Member& m = s.members[i];
    const std::string name = "member " + std::to_string(i);
    await([&] { return m.answered == n + 1; }, name + " to answer");
    expect_equal(m.now_pid, m.pid, name + "'s pid");
    expect_equal(m.now_parent, m.parent, name + "'s parent");
    expect_equal(m.now_group, m.group, name + "'s group");
    expect_equal(m.now_session, m.session, name + "'s session");
  }
}

void verify_zombie(pid_t pid, int code, int status, const std::string& name) {
  siginfo_t info{};
  must(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT | WNOHANG), "waitid");
  expect_equal(info.si_pid, pid, name + ": waitid");
  expect_equal(info.si_code, code, name + ": si_code");
  expect_equal(info.si_status, status, name + ": status");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        auto* s = shared_memory<Shared>();
        start(*s, 0, nullptr);
        start(*s, 1, [](Shared&) { setpgid(0, 0); });
        start(*s, 2, [](Shared& shared) {
          setsid();
          start(shared, 3, nullptr);
          start(shared, 4, [](Shared&) { setpgid(0, 0); });
        });
        Children c{};
        c.exited = must(fork(), "fork");
        if (c.exited == 0) _exit(7);
        c.killed = must(fork(), "fork");
        if (c.killed == 0) {
          setpgid(0, 0);
          raise(SIGKILL);
        }
        c.stopped = start(*s, 5, nullptr);
        must(kill(c.stopped, SIGSTOP), "kill");
        await([&] { return state_of(c.stopped) == 'T' && state_of(c.exited) == 'Z' && state_of(c.killed) == 'Z'; },
              "zombies and the stopped child");
        w.serve([&] {
          verify_members(*s);
          verify_zombie(c.exited, CLD_EXITED, 7, "exited child");
          verify_zombie(c.killed, CLD_KILLED, SIGKILL, "killed child");
          expect(state_of(c.stopped) == 'T', std::string("the stopped child is in state ") + state_of(c.stopped));
          // It still can go on, and be stopped again.
          const uint32_t n = s->asked;
          must(kill(c.stopped, SIGCONT), "kill");
          await([&] { return s->members[5].answered == n + 1; }, "the stopped child to go on");
          must(kill(c.stopped, SIGSTOP), "kill");
          await([&] { return state_of(c.stopped) == 'T'; }, "the child to stop again");
        });
      },
      argv[0]);
}
