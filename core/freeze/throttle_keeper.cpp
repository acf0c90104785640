#include "core/freeze/throttle_keeper.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/procfs.h"

namespace migrate {
namespace {

/// Sockets and pipes of ours must close with us: a peer waits for that.
void keep_only(int fd) {
  close_all_but({fd}, 3);
  const int null = ::open("/dev/null", O_RDWR);
  for (int standard = 0; standard < 3 && null >= 0; ++standard) ::dup2(null, standard);
  if (null > 2) ::close(null);
}

bool wait_for_death(int pidfd, int milliseconds) {
  pollfd p{pidfd, POLLIN, 0};
  int n = 0;
  do {
    n = ::poll(&p, 1, milliseconds);
  } while (n < 0 && errno == EINTR);
  return n != 0;  // an error as well: better to let go than to hold on without looking
}

}  // namespace

Keeper::Keeper(const std::function<void(const ParentDied&)>& work) {
  const auto us = open_pidfd(::getpid());
  if (!us) throw Error("open a pidfd of", "our own process", errno);
  // A descriptor over the standard ones, whatever was closed in our process.
  const Fd high(check(::fcntl(us->get(), F_DUPFD_CLOEXEC, 3), "duplicate", "descriptor"));
  pid_ = check(::fork(), "start", "a keeper");
  if (pid_ != 0) return;
  ::setsid();
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) ::signal(number, SIG_IGN);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::prctl(PR_SET_NAME, "migrate-keeper");
  keep_only(high.get());
  try {
    work([fd = high.get()](int milliseconds) { return wait_for_death(fd, milliseconds); });
  } catch (...) {
    ::_exit(1);  // nobody is left to be told
  }
  ::_exit(0);
}

Keeper::~Keeper() {
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace migrate
