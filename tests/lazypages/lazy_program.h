// A process whose memory is missing, and a source of its pages.
#pragma once

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
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "lazypages/lazy_memories.h"
#include "tests/workloads/memory_walk.h"

namespace migrate::lazy_testing {

inline constexpr std::chrono::milliseconds kPatience{20000};
inline constexpr MemoryId kMemory{MemoryId::Kind::task, 7};

/// Word `word` of the page that was number `page` at the source.
using memory_walk::word_of;
inline bool exists(uint64_t page) { return page % 5 != 4; }

/// What test and program tell each other.
struct Talk {
  std::atomic<int> userfaultfd{-1};
  std::atomic<uint64_t> base{0};
  std::atomic<bool> go{false};
  std::atomic<uint64_t> progress{0};
  std::atomic<bool> enough{false};  ///< the program may end
  std::array<char, 256> trouble{};
};

/// A child of the test with `pages` pages of lazy memory; `body` runs in it once they are registered, and returns its
/// exit code. Make it before any thread.
class LazyProgram {
 public:
  using Body = std::function<int(char* base, Talk& talk)>;
  LazyProgram(uint64_t pages, const Body& body) : pages_(pages) {
    talk_ = new (::mmap(nullptr, sizeof(Talk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Talk;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      char* base = static_cast<char*>(
          ::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      talk_->base = reinterpret_cast<uint64_t>(base);
      const auto uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
      talk_->userfaultfd = uffd;
      while (!talk_->go) ::usleep(50);
      ::close(uffd);
      ::_exit(body(base, *talk_));
    }
    pidfd_ = std::move(*open_pidfd(pid_));
    const Deadline deadline = Deadline::in(kPatience);
    while (talk_->userfaultfd < 0 && !deadline.passed()) ::usleep(50);
  }
  ~LazyProgram() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::munmap(talk_, sizeof(Talk));
  }

  LazyMemory register_memory() {
    LazyMemory memory{kMemory, get_remote_fd(pidfd_.get(), talk_->userfaultfd), pidfd_.dup(), {}, {}};
    ::fcntl(memory.userfaultfd.get(), F_SETFL, O_NONBLOCK);
    uffdio_api api{
        UFFD_API,
        UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP, 0};
    EXPECT_EQ(::ioctl(memory.userfaultfd.get(), UFFDIO_API, &api), 0);
    uffdio_register reg{{base(), pages_ * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
    EXPECT_EQ(::ioctl(memory.userfaultfd.get(), UFFDIO_REGISTER, &reg), 0);
    memory.ranges.push_back({RemoteAddr(base()), RemoteAddr(base() + pages_ * kPageSize)});
    for (uint64_t i = 0; i < pages_; ++i) {
      if (!exists(i)) continue;
      if (i > 0 && exists(i - 1)) {
        ++memory.missing.back().pages;
      } else {
        memory.missing.push_back({base() + i * kPageSize, 1});
      }
    }
    return memory;
  }
  void go() { talk_->go = true; }
  uint64_t base() const { return talk_->base; }
  uint64_t pages() const { return pages_; }
  pid_t pid() const { return pid_; }
  Talk& talk() { return *talk_; }

  bool has_ended(int within_ms = 0) const {
    pollfd waited{pidfd_.get(), POLLIN, 0};
    return ::poll(&waited, 1, within_ms) == 1;
  }
  /// Its exit status, as wait(2) gives it; -1 if it does not end in time.
  int ended() {
    pollfd waited{pidfd_.get(), POLLIN, 0};
    if (::poll(&waited, 1, static_cast<int>(kPatience.count())) != 1) return -1;
    int status = 0;
    ::waitpid(std::exchange(pid_, 0), &status, 0);
    return status;
  }

 private:
  uint64_t pages_;
  Talk* talk_;
  pid_t pid_;
  Fd pidfd_;
};

/// The daemon's part: a thread for faults, one that serves what they ask for, one that fills in the background.
class Daemon {
 public:
  struct Options {
    bool fill = true;
    bool serve = true;  ///< what is asked for
    uint64_t seed = 1;
    std::chrono::microseconds pause{0};  ///< between pieces of the fill
  };
  using Make = std::function<std::unique_ptr<LazyMemories>(LazyMemories::Wanted)>;
  Daemon(LazyProgram& program, Options options)
      : Daemon(program, options, [&](LazyMemories::Wanted wanted) {
          std::vector<LazyMemory> memories;
          memories.push_back(program.register_memory());
          return std::make_unique<LazyMemories>(std::move(memories), std::move(wanted));
        }) {}
  Daemon(LazyProgram& program, Options options, const Make& make) : program_(program), options_(options) {
    memories_ = make([this](MemoryId, uint64_t source) {
      const std::lock_guard lock(mutex_);
      wanted_.push_back(source);
      ++asked_;
      wakeup_.notify_one();
    });
    threads_.emplace_back([this] {
      while (!stop_) memories_->serve(std::chrono::milliseconds(20));
    });
    if (options.serve) threads_.emplace_back([this] { serve_wanted(); });
    if (options.fill) threads_.emplace_back([this] { fill(); });
  }
  ~Daemon() { stop(); }

  void stop() {
    stop_ = true;
    wakeup_.notify_all();
    for (std::thread& t : threads_) t.join();
    threads_.clear();
  }
  LazyMemories& memories() { return *memories_; }
  uint64_t asked() const { return asked_; }
  bool becomes_whole() {
    const Deadline deadline = Deadline::in(kPatience);
    while (!memories_->whole() && !deadline.passed()) ::usleep(500);
    return memories_->whole();
  }
  std::vector<std::byte> data(uint64_t source, uint64_t pages) const {
    std::vector<std::byte> bytes(pages * kPageSize);
    auto* words = reinterpret_cast<uint64_t*>(bytes.data());
    const uint64_t first = (source - program_.base()) / kPageSize;
    for (uint64_t w = 0; w < pages * 512; ++w) words[w] = word_of(first + w / 512, w % 512);
    return bytes;
  }

 private:
  void serve_wanted() {
    for (std::unique_lock lock(mutex_); !stop_;) {
      if (wanted_.empty()) {
        wakeup_.wait_for(lock, std::chrono::milliseconds(20));
        continue;
      }
      const uint64_t source = wanted_.front();
      wanted_.pop_front();
      lock.unlock();
      memories_->write(kMemory, source, data(source, 1));
      lock.lock();
    }
  }
  void fill() {
    std::mt19937_64 random(options_.seed);
    while (!stop_) {
      for (const auto& [memory, runs] : memories_->missing()) {
        for (const PageRun& run : runs) {
          if (stop_) return;
          // Now and then a page that is missing no more, too.
          const uint64_t pages = std::min<uint64_t>(run.pages, 1 + random() % 16);
          memories_->write(memory, run.address, data(run.address, pages));
          if (options_.pause.count() > 0) std::this_thread::sleep_for(options_.pause);
        }
      }
      if (memories_->whole()) ::usleep(1000);
    }
  }

  LazyProgram& program_;
  Options options_;
  std::unique_ptr<LazyMemories> memories_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wakeup_;
  std::deque<uint64_t> wanted_;
  std::atomic<uint64_t> asked_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace migrate::lazy_testing
