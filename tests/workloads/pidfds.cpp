// pidfds: of itself, of its first thread, of a living child, of one that has ended, and of one that was waited for.
#include <poll.h>
#include <sys/wait.h>

#include <csignal>

#include "workload.h"

using namespace workload;

namespace {

int open_pidfd(pid_t pid, unsigned flags = 0) {
  return static_cast<int>(must(syscall(SYS_pidfd_open, pid, flags), "pidfd_open"));
}

bool ended(int pidfd) {
  pollfd p{pidfd, POLLIN, 0};
  poll(&p, 1, 0);
  return (p.revents & POLLIN) != 0;
}

int send(int pidfd, int signal) { return static_cast<int>(syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0)); }

pid_t child() {
  const pid_t parent = getpid();
  const pid_t pid = must(fork(), "fork");
  while (pid == 0)
    if (sleep_ms(20); getppid() != parent) _exit(0);
  return pid;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int self = open_pidfd(getpid()), thread = static_cast<int>(syscall(SYS_pidfd_open, getpid(), O_EXCL));
        const pid_t kept = child(), lost = child(), dead = child();
        const int living = open_pidfd(kept, O_NONBLOCK), zombie = open_pidfd(dead), gone = open_pidfd(lost);
        const int again = open_pidfd(lost);
        kill(lost, SIGKILL);
        must(waitpid(lost, nullptr, 0), "waitpid");
        kill(dead, SIGKILL);
        await([&] { return ended(zombie); }, "the end of a child");
        w.serve([&] {
          expect(!ended(self) && send(self, 0) == 0, "the own pidfd is not of a living process");
          if (thread >= 0) {
            expect(!ended(thread) && send(thread, 0) == 0, "the thread's pidfd is not of a living one");
            expect((fcntl(thread, F_GETFL) & O_EXCL) != 0, "the thread's pidfd is of a process");
          }
          expect(!ended(living) && send(living, 0) == 0, "the pidfd of a living child is not");
          expect((fcntl(living, F_GETFL) & O_NONBLOCK) != 0, "O_NONBLOCK is lost");
          siginfo_t info{};
          must(waitid(P_PIDFD, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT), "waitid of a pidfd");
          expect_equal(info.si_pid, dead, "the child that has ended");
          expect_equal(info.si_status, SIGKILL, "how it ended");
          for (const int fd : {gone, again})
            expect(ended(fd) && send(fd, 0) == -1 && errno == ESRCH, "a pidfd is of a process that had ended");
        });
      },
      argv[0]);
}
