// Children that job control has stopped: each by its signal, of which the parent hears once, and not again if it has
// already; signals that came meanwhile wait until they go on.
#include <sys/wait.h>

#include <csignal>

#include "workload.h"

using namespace workload;

namespace {

struct Child {
  std::atomic<uint64_t> turns, signals;
  int signal;
  bool collected, hangup;
  pid_t pid;
};

Child* g_self;
std::atomic<int> g_reports{0};

char state_of(pid_t pid) {
  char text[512] = {};
  const int fd = must(open(("/proc/" + std::to_string(pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC), "open stat");
  const ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  const char* end = got > 0 ? std::strrchr(text, ')') : nullptr;
  return end == nullptr ? '?' : end[2];
}

[[noreturn]] void be(Child& self, const Workload& w) {
  setpgid(0, 0);
  g_self = &self;
  signal(SIGUSR1, [](int) { ++g_self->signals; });
  for (; access(w.dir().c_str(), F_OK) == 0; sleep_ms(2)) ++self.turns;
  std::_Exit(0);
}

/// Stops it, and takes the report if it is one of those whose report is taken.
void stop(Child& child) {
  must(kill(child.pid, child.signal), "kill");
  await([&] { return state_of(child.pid) == 'T'; }, "a child to stop");
  if (child.hangup) must(kill(child.pid, SIGUSR1), "kill");
  if (!child.collected) return;
  int status = 0;
  expect_equal(must(waitpid(child.pid, &status, WUNTRACED), "waitpid"), child.pid, "the stopped child");
}

void check(Child& child, uint64_t signals) {
  const std::string who = "the child stopped by signal " + std::to_string(child.signal);
  expect(state_of(child.pid) == 'T', who + " is not stopped");
  const uint64_t turns = child.turns;
  sleep_ms(10);
  expect_equal(child.turns.load(), turns, who + " runs");
  expect_equal(child.signals.load(), signals, who + ": signals that it took while stopped");
  siginfo_t info{};
  must(waitid(P_PID, static_cast<id_t>(child.pid), &info, WSTOPPED | WNOHANG), "waitid");
  expect_equal(info.si_pid, child.collected ? 0 : child.pid, who + ": reports");
  if (!child.collected) expect_equal(info.si_status, child.signal, who + ": the signal in its report");
  must(kill(child.pid, SIGCONT), "kill");
  await([&] { return child.turns > turns; }, who + " to go on");
  if (child.hangup) await([&] { return child.signals > signals; }, who + " to take its signal");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        struct Kind {
          int signal;
          bool collected, hangup;
        };
        constexpr Kind kKinds[] = {{SIGSTOP, false, false}, {SIGSTOP, true, true},   {SIGTSTP, false, true},
                                   {SIGTSTP, true, false},  {SIGTTIN, false, false}, {SIGTTOU, true, false}};
        constexpr size_t kCount = std::size(kKinds);
        Child* children = shared_memory<Child>(kCount);
        for (size_t i = 0; i < kCount; ++i) {
          children[i].signal = kKinds[i].signal;
          children[i].collected = kKinds[i].collected;
          children[i].hangup = kKinds[i].hangup;
          const pid_t pid = must(fork(), "fork");
          if (pid == 0) be(children[i], w);
          children[i].pid = pid;
        }
        for (size_t i = 0; i < kCount; ++i) await([&] { return children[i].turns > 1; }, "a child");
        const auto stop_all = [&] {
          for (size_t i = 0; i < kCount; ++i) stop(children[i]);
          sleep_ms(10);
          g_reports = 0;
        };
        must(signal(SIGCHLD, [](int) { ++g_reports; }) == SIG_ERR ? -1 : 0, "signal");
        stop_all();
        w.serve([&] {
          expect_equal(g_reports.load(), 0, "SIGCHLD of stops that it had heard of");
          for (size_t i = 0; i < kCount; ++i) check(children[i], children[i].signals);
          stop_all();
        });
      },
      argv[0]);
}
