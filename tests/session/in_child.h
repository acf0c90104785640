// Running a piece of a test in another process.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

namespace migrate {

/// Waits for a child's end; its exit status, or -1 if it was killed.
inline int exit_of(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Runs `body` in a forked child; its result is the exit status. -1 if the child was killed. Not beside other threads:
/// what one of them has locked (the sanitizers' allocator, say) stays locked in the child.
template <class Body>
int in_child(Body body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  return exit_of(pid);
}

}  // namespace migrate
