// A program that touches memory which is missing, for benchmarks of post-copy: it times each fault itself.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <new>
#include <random>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "core/memory/lazy_memory.h"

namespace migrate {

/// Shared with the program.
struct LazyShared {
  static LazyShared* make() {
    return new (::mmap(nullptr, sizeof(LazyShared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
        LazyShared;
  }
  std::atomic<int> userfaultfd{-1};
  std::atomic<uint64_t> base{0};
  std::atomic<bool> go{false}, stop{false};
  std::atomic<uint64_t> count{0};
  float us[1 << 18];

  float quantile(double q) {
    if (count == 0) return 0;
    std::sort(us, us + count);
    return us[static_cast<size_t>(static_cast<double>(count - 1) * q)];
  }
};

/// Free in every process: the program's memory is where the source had it.
inline void* const kPlace = reinterpret_cast<void*>(0x200000000000);  // NOLINT

/// A fork that touches random pages of its own: `touches` of them, or until `stop`; each after `pause`.
class LazyProgram {
 public:
  LazyProgram(LazyShared& shared, uint64_t pages, uint64_t touches, std::chrono::microseconds pause)
      : shared_(shared), pages_(pages), pid_(::fork()) {
    if (pid_ == 0) touch(touches, pause);
    for (const Deadline deadline = Deadline::in(std::chrono::seconds(10)); shared_.userfaultfd < 0; ::usleep(50))
      if (deadline.passed()) throw Error("wait for", "the program's userfaultfd", ETIMEDOUT);
  }
  ~LazyProgram() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  LazyProgram(const LazyProgram&) = delete;
  LazyProgram& operator=(const LazyProgram&) = delete;

  void wait_for_end() { ::waitid(P_PID, static_cast<id_t>(pid_), nullptr, WEXITED | WNOWAIT); }

  /// All its pages are missing.
  LazyMemory registered(MemoryId id) const {
    const Fd process = std::move(*open_pidfd(pid_));
    LazyMemory memory{id, get_remote_fd(process.get(), shared_.userfaultfd), process.dup(), {}, {}};
    uffdio_api api{
        UFFD_API,
        UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP, 0};
    check(::ioctl(memory.userfaultfd.get(), UFFDIO_API, &api), "set up", "a userfaultfd");
    uffdio_register reg{{shared_.base, pages_ * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
    check(::ioctl(memory.userfaultfd.get(), UFFDIO_REGISTER, &reg), "register", "memory");
    memory.ranges = {{RemoteAddr(shared_.base), RemoteAddr(shared_.base + pages_ * kPageSize)}};
    memory.missing = {{shared_.base, pages_}};
    return memory;
  }

 private:
  [[noreturn]] void touch(uint64_t touches, std::chrono::microseconds pause) {
    using Clock = std::chrono::steady_clock;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::prctl(PR_SET_TIMERSLACK, 1000);
    void* at = ::mmap(kPlace, pages_ * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared_.base = reinterpret_cast<uint64_t>(at);
    const auto uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    shared_.userfaultfd = uffd;
    while (!shared_.go) ::usleep(50);
    ::close(uffd);
    std::mt19937_64 random(1);
    for (uint64_t i = 0; i < touches && !shared_.stop; ++i) {
      if (pause.count() > 0) ::usleep(static_cast<useconds_t>(pause.count()));
      auto* page = static_cast<volatile uint64_t*>(at) + random() % pages_ * 512;
      const auto start = Clock::now();
      *page = i;
      const std::chrono::duration<float, std::micro> took = Clock::now() - start;
      // Less: it was there.
      if (took.count() > 3 && shared_.count < std::size(shared_.us)) shared_.us[shared_.count++] = took.count();
    }
    ::_exit(0);
  }

  LazyShared& shared_;
  const uint64_t pages_;
  const pid_t pid_;
};

}  // namespace migrate
