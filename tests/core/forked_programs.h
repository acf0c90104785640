// Programs that a test forks: killed and reaped at its end, whatever happens. And waiting with a deadline.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <new>
#include <set>

#include "core/base/log.h"
#include "tests/eventually.h"

namespace migrate {

/// `Shared`: memory that the test and its programs share, made anew for each test.
template <class Shared>
class ForkedPrograms : public testing::Test {
 protected:
  ForkedPrograms() {
    shared_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
  }
  ~ForkedPrograms() override {
    for (const pid_t pid : children_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    ::munmap(shared_, sizeof(Shared));
  }
  /// Runs `body` in a child, which dies with the test program.
  pid_t fork_program(const std::function<void()>& body) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      body();
      ::_exit(0);
    }
    children_.insert(pid);
    return pid;
  }
  /// Waits for the end of one; its status as wait(2) gives it.
  int reap(pid_t pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    children_.erase(pid);
    return status;
  }

  Shared* shared_;
  LoggerPtr log_ = null_logger();

 private:
  std::set<pid_t> children_;
};

}  // namespace migrate
