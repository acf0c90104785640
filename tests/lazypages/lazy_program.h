// A process whose memory is missing, and a source of its pages.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "lazypages/lazy_memories.h"
#include "tests/lazypages/waiting_program.h"
#include "tests/workloads/memory_walk.h"

namespace migrate::lazy_testing {

inline constexpr MemoryId kMemory{MemoryId::Kind::task, 7};

/// Word `word` of the page that was number `page` at the source.
using memory_walk::word_of;
inline bool exists(uint64_t page) { return page % 5 != 4; }

/// A child of the test with `pages` pages of lazy memory; `body` runs in it once they are registered, and returns its
/// exit code. Make it before any thread.
class LazyProgram : public WaitingProgram<Talk> {
 public:
  LazyProgram(uint64_t pages, const Body& body) : pages_(pages) {
    const auto make = [pages] {
      return static_cast<char*>(
          ::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    };
    start(make, body);
  }

  LazyMemory register_memory() {
    constexpr uint64_t kEvents =
        UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
    const RemoteRange all{RemoteAddr(base()), RemoteAddr(base() + pages_ * kPageSize)};
    LazyMemory memory{kMemory,
                      take_userfaultfd(talk().userfaultfd, kEvents, all, UFFDIO_REGISTER_MODE_MISSING),
                      process(),
                      {all},
                      {}};
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
  uint64_t pages() const { return pages_; }

 private:
  uint64_t pages_;
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
