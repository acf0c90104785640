// A process whose memory a test makes missing before the process goes on.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <new>
#include <utility>

#include "core/base/deadline.h"
#include "core/base/procfs.h"

namespace migrate::lazy_testing {

inline constexpr std::chrono::milliseconds kPatience{20000};

/// What test and program tell each other.
struct Talk {
  std::atomic<int> userfaultfd{-1}, second{-1};
  std::atomic<uint64_t> base{0};
  std::atomic<bool> go{false};
  std::atomic<uint64_t> progress{0};
  std::atomic<bool> enough{false};  ///< the program may end
  std::array<char, 256> trouble{};
};

/// A child of the test that makes memory and userfaultfds, waits until the test has registered it, and goes on. `Told`:
/// a Talk, perhaps with more. Make it before any thread.
template <class Told>
class WaitingProgram {
 public:
  using Body = std::function<int(char* base, Told& talk)>;

  WaitingProgram(const WaitingProgram&) = delete;
  WaitingProgram& operator=(const WaitingProgram&) = delete;
  ~WaitingProgram() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::munmap(talk_, sizeof(Told));
  }

  void go() { talk_->go = true; }
  uint64_t base() const { return talk_->base; }
  pid_t pid() const { return pid_; }
  Told& talk() { return *talk_; }

  bool has_ended(int within_ms = 0) const {
    pollfd waited{pidfd_.get(), POLLIN, 0};
    return ::poll(&waited, 1, within_ms) == 1;
  }
  /// Its exit status, as wait(2) gives it; -1 if it does not end in time.
  int ended() {
    if (!has_ended(static_cast<int>(kPatience.count()))) return -1;
    int status = 0;
    ::waitpid(std::exchange(pid_, 0), &status, 0);
    return status;
  }

 protected:
  WaitingProgram()
      : talk_(new (::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Told) {}

  /// `make` makes the memory, in the child, and says where it is; `body` runs there when it is registered and returns
  /// the exit code.
  void start(const std::function<char*()>& make, const Body& body) {
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      char* base = make();
      talk_->base = reinterpret_cast<uint64_t>(base);
      for (std::atomic<int>* one : {&talk_->second, &talk_->userfaultfd})
        *one = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
      while (!talk_->go) ::usleep(50);
      ::close(talk_->second);
      ::close(talk_->userfaultfd);
      ::_exit(body(base, *talk_));
    }
    pidfd_ = std::move(*open_pidfd(pid_));
    const Deadline deadline = Deadline::in(kPatience);
    while (talk_->userfaultfd < 0 && !deadline.passed()) ::usleep(50);
  }

  /// The child's userfaultfd `number`, with UFFDIO_API done and a range registered.
  Fd take_userfaultfd(int number, uint64_t features, RemoteRange range, uint64_t mode) const {
    Fd uffd = get_remote_fd(pidfd_.get(), number);
    ::fcntl(uffd.get(), F_SETFL, O_NONBLOCK);
    uffdio_api api{.api = UFFD_API, .features = features};
    EXPECT_EQ(::ioctl(uffd.get(), UFFDIO_API, &api), 0);
    uffdio_register order{.range = {range.start.get(), range.bytes()}, .mode = mode};
    EXPECT_EQ(::ioctl(uffd.get(), UFFDIO_REGISTER, &order), 0);
    return uffd;
  }
  Fd process() const { return pidfd_.dup(); }

 private:
  Told* talk_;
  pid_t pid_ = 0;
  Fd pidfd_;
};

}  // namespace migrate::lazy_testing
