// Running a piece of a test in another process.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

namespace migrate {

/// Runs `body` in a forked child; its result is the exit status. -1 if the child was killed.
template <class Body>
int in_child(Body body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace migrate
