// Visits that tests make, also by a tracer that is killed in the middle.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "core/freeze/stopped_tree.h"
#include "core/inject/harvest.h"

namespace migrate {

inline std::string maps_of(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/maps");
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

/// The tracer is a child of ours that dies of SIGKILL at stage number `die_at`. Returns false when the visit had fewer
/// stages.
inline bool visit_and_die(pid_t target, unsigned die_at, std::string* name) {
  int fds[2];
  if (::pipe(fds) != 0) return false;
  const pid_t tracer = ::fork();
  if (tracer == 0) {
    ::close(fds[0]);
    const LoggerPtr log = null_logger();
    try {
      unsigned at = 0;
      StoppedTree tree(Pid(target), {}, *log);
      harvest(tree.root(), {}, *log, [&](const char* stage) {
        if (at++ != die_at) return;
        if (::write(fds[1], stage, std::strlen(stage)) < 0) ::_exit(3);
        ::kill(::getpid(), SIGKILL);
      });
    } catch (const Error& e) {
      if (::write(fds[1], e.what(), std::strlen(e.what())) < 0) ::_exit(4);
      ::_exit(2);
    }
    ::_exit(0);
  }
  ::close(fds[1]);
  char text[200];
  for (ssize_t n; (n = ::read(fds[0], text, sizeof text)) > 0;) name->append(text, static_cast<size_t>(n));
  ::close(fds[0]);
  int status = 0;
  ::waitpid(tracer, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0) *name = "error: " + *name;
  return WIFSIGNALED(status);
}

}  // namespace migrate
