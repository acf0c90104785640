#include "migrate/session/guardian/background.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "core/base/deadline.h"
#include "migrate/session/guardian/guardian.h"
#include "tests/session/in_child.h"

namespace migrate {
namespace {

bool is_null(int fd) {
  struct stat st {
  }, null{};
  return ::fstat(fd, &st) == 0 && ::stat("/dev/null", &null) == 0 && st.st_rdev == null.st_rdev;
}

ino_t inode(int fd) {
  struct stat st {};
  return ::fstat(fd, &st) == 0 ? st.st_ino : 0;
}

TEST(Background, KeepsNothingButWhatItWasGiven) {
  const int status = in_child([] {
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, nullptr);
    std::array<int, 2> a{}, b{};
    if (::pipe2(a.data(), O_CLOEXEC) != 0 || ::pipe2(b.data(), O_CLOEXEC) != 0) return 1;
    const ino_t first = inode(b[1]), second = inode(a[1]);
    go_to_background({b[1], a[1]});
    if (::getsid(0) != ::getpid()) return 2;
    if (!is_null(0) || !is_null(1)) return 3;
    if (inode(3) != first || inode(4) != second) return 4;
    for (int fd = 5; fd < 64; ++fd) {
      if (::fcntl(fd, F_GETFD) != -1) return 5;
    }
    if (::fcntl(3, F_GETFD) != 0 || ::fcntl(4, F_GETFD) != 0) return 6;  // inherited by what is executed
    for (int sig : {SIGINT, SIGTERM, SIGHUP}) {
      if (::signal(sig, SIG_DFL) != SIG_IGN) return 7;
    }
    sigset_t now;
    ::sigprocmask(SIG_SETMASK, nullptr, &now);
    return ::sigismember(&now, SIGUSR1) ? 8 : 0;
  });
  EXPECT_EQ(status, 0);
}

/// A guardian that answers `started` after half a second.
Guardian slow_guardian() {
  return Guardian([](Fd end) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    PacketSocket agent(std::move(end));
    wire::GuardianRequest request;
    agent.receive(request, Deadline::in(std::chrono::seconds(5)));
    ::poll(nullptr, 0, 500);
    wire::GuardianReply reply;
    reply.set_started(7);
    agent.send(reply);
    ::_exit(0);
  });
}

TEST(Guardian, AWaitForItCanBeInterruptedAndTakenUpAgain) {
  Guardian guardian = slow_guardian();
  StopEvent stop;
  stop.trigger();
  wire::GuardianRequest request;
  request.set_alive(true);
  const Deadline soon = Deadline::in(std::chrono::seconds(5));
  EXPECT_THROW(guardian.ask(request, soon, &stop), Cancelled);
  EXPECT_EQ(guardian.await(soon).started(), 7u);
  guardian.leave(soon);
}

}  // namespace
}  // namespace migrate
