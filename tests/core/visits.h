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
#include "tests/core/forked_programs.h"

namespace migrate {

/// Programs that count. `Shared` has what they tell: `ready`, and `progress`.
template <class Shared>
class VisitedPrograms : public ForkedPrograms<Shared> {
 protected:
  using ForkedPrograms<Shared>::shared_;
  pid_t start(const std::function<void()>& body) {
    const pid_t pid = this->fork_program(body);
    EXPECT_TRUE(eventually([&] { return shared_->ready > 0; }));
    return pid;
  }
  bool goes_on() {
    const uint64_t seen = shared_->progress;
    return eventually([&] { return shared_->progress > seen + 20; });
  }
  [[noreturn]] void count() {
    for (shared_->ready = 1;; ++shared_->progress) {
    }
  }
};

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
