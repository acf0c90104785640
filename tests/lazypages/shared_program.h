// A program whose shared memory is missing, and who brings it.
#pragma once

#include <iterator>
#include <optional>

#include "tests/lazypages/shared_walk.h"

namespace migrate::lazy_testing {

inline constexpr MemoryId kObject{MemoryId::Kind::shmem, 5};
inline constexpr uint64_t kSharedBase = 64 << 20;  ///< its place

/// A child of the test that maps the object, which nobody else has.
class SharedProgram : public WaitingProgram<SharedTalk> {
 public:
  struct Options {
    bool all = false;  ///< all pages are missing, not only those that exist in the walk
    int beside = 0;    ///< it has private memory that is missing, too: below (-1) or above the shared
  };
  explicit SharedProgram(const Body& body) : SharedProgram(body, Options{}) {}
  SharedProgram(const Body& body, Options options) : options_(options) {
    for (uint64_t i = 0; i < kSharedPages; ++i)
      talk().book[i].kind = exists(i) ? SharedTalk::Page::source : SharedTalk::Page::zeros;
    object_ = Fd(::memfd_create("lazy", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(object_.get(), kSharedPages * kPageSize), 0);
    start([this] { return map(); }, body);
  }

  std::vector<LazyMemory> register_memory() {
    constexpr uint64_t kEvents = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP;
    const auto range = [](uint64_t start, uint64_t pages = kSharedPages) {
      return RemoteRange{RemoteAddr(start), RemoteAddr(start + pages * kPageSize)};
    };
    std::vector<LazyMemory> all;
    Fd uffd = take_userfaultfd(talk().userfaultfd, kEvents | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM,
                               range(base()), UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
    all.push_back({kSharedMappings, std::move(uffd), process(), {range(base())}, {{kSharedBase, kSharedPages}}});
    all.push_back({kObject, object_.dup(), process(), {range(kSharedBase)}, {}});
    for (uint64_t i = 0; i < kSharedPages; ++i)
      if (options_.all || exists(i)) all.back().missing.push_back({i * kPageSize, 1});
    object_.reset();
    if (talk().beside == 0) return all;
    const RemoteRange beside = range(talk().beside, kBesidePages);
    uffd = take_userfaultfd(talk().second, kEvents | UFFD_FEATURE_EVENT_REMOVE, beside, UFFDIO_REGISTER_MODE_MISSING);
    all.push_back({kMemory, std::move(uffd), process(), {beside}, {{talk().beside, kBesidePages}}});
    return all;
  }

 private:
  char* map() {
    // At a border of huge pages.
    constexpr uint64_t kHuge = 2 << 20, kBytes = kSharedPages * kPageSize;
    const auto room =
        reinterpret_cast<uint64_t>(::mmap(nullptr, kBytes + 3 * kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    const uint64_t at = (room + 2 * kHuge - 1) & ~(kHuge - 1);
    const auto place = [](uint64_t where, uint64_t bytes, int flags, int fd) {
      return static_cast<char*>(
          ::mmap(reinterpret_cast<void*>(where), bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0));
    };
    char* base = place(at, kBytes, MAP_SHARED, object_.get());
    object_.reset();
    if (options_.beside == 0) return base;
    const uint64_t beside = options_.beside < 0 ? at - kBesidePages * kPageSize : at + kBytes;
    place(beside, kBesidePages * kPageSize, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    talk().beside = beside;
    return base;
  }

  const Options options_;
  Fd object_;
};

/// As they are at the source.
inline void write_pages_of(LazyMemories& memories, const SharedTalk& talk, MemoryId memory, uint64_t source,
                           uint64_t pages) {
  const uint64_t first = (source - (memory == kObject ? 0 : talk.beside.load())) / kPageSize;
  std::vector<std::byte> bytes(pages * kPageSize);
  auto* words = reinterpret_cast<uint64_t*>(bytes.data());
  for (uint64_t w = 0; w < pages * 512; ++w) words[w] = word_of(first + w / 512, w % 512);
  memories.write(memory, source, bytes);
}

/// Serves faults, and fills in an order of its own, slowly.
class SharedDaemon {
 public:
  using Make = std::function<std::unique_ptr<LazyMemories>(LazyMemories::Wanted)>;
  SharedDaemon(const SharedTalk& talk, uint64_t seed, std::chrono::microseconds pause, const Make& make)
      : talk_(talk), seed_(seed), pause_(pause) {
    memories_ = make([this](MemoryId memory, uint64_t source) {
      const std::lock_guard lock(mutex_);
      wanted_.emplace_back(memory, source);
      ++asked_;
    });
    threads_.emplace_back([this] {
      while (!stop_) memories_->serve(std::chrono::milliseconds(20));
    });
    threads_.emplace_back([this] { bring(); });
    threads_.emplace_back([this] { fill(); });
  }
  ~SharedDaemon() { stop_threads(); }
  LazyMemories& memories() { return *memories_; }
  uint64_t asked() const { return asked_; }
  void be_slow() { slow_ = true; }
  void write(MemoryId memory, uint64_t source, uint64_t pages) {
    write_pages_of(*memories_, talk_, memory, source, pages);
  }
  void stop_threads() {
    stop_ = true;
    for (std::thread& t : threads_) t.join();
    threads_.clear();
  }

 private:
  void bring() {
    while (!stop_) {
      std::optional<std::pair<MemoryId, uint64_t>> next;
      {
        const std::lock_guard lock(mutex_);
        if (!wanted_.empty()) next = wanted_.front(), wanted_.pop_front();
      }
      if (next) {
        write(next->first, next->second, 1);
        if (slow_) ::usleep(400);
      } else {
        ::usleep(100);
      }
    }
  }
  void fill() {
    std::mt19937_64 random(seed_);
    while (!stop_) {
      const auto missing = memories_->missing();
      if (missing.empty()) {
        ::usleep(500);
        continue;
      }
      const auto& [memory, runs] = *std::next(missing.begin(), static_cast<ptrdiff_t>(random() % missing.size()));
      const PageRun run = runs[random() % runs.size()];
      write(memory, run.address, std::min<uint64_t>(run.pages, 1 + random() % 16));
      std::this_thread::sleep_for(pause_);
    }
  }

  const SharedTalk& talk_;
  const uint64_t seed_;
  const std::chrono::microseconds pause_;
  std::unique_ptr<LazyMemories> memories_;
  std::mutex mutex_;
  std::deque<std::pair<MemoryId, uint64_t>> wanted_;
  std::atomic<uint64_t> asked_{0};
  std::atomic<bool> stop_{false}, slow_{false};
  std::vector<std::thread> threads_;
};

}  // namespace migrate::lazy_testing
