// Shared memory that comes while several processes use it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#include <set>

#include "lazypages/lazy_host.h"
#include "tests/lazypages/shared_walk.h"

namespace migrate::lazy_testing {
namespace {

constexpr MemoryId kObject{MemoryId::Kind::shmem, 5};
constexpr uint64_t kBase = 64 << 20;  // its place

/// A child of the test that maps the object, which nobody else has.
class SharedProgram {
 public:
  using Body = std::function<int(char* base, SharedTalk& talk)>;
  explicit SharedProgram(const Body& body, bool all = false) : all_(all) {
    talk_ =
        new (::mmap(nullptr, sizeof(SharedTalk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) SharedTalk;
    for (uint64_t i = 0; i < kSharedPages; ++i)
      talk_->book[i].kind = exists(i) ? SharedTalk::Page::source : SharedTalk::Page::zeros;
    object_ = Fd(::memfd_create("lazy", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(object_.get(), kSharedPages * kPageSize), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      // At a border of huge pages.
      constexpr uint64_t kHuge = 2 << 20;
      const auto room = reinterpret_cast<uint64_t>(
          ::mmap(nullptr, kSharedPages * kPageSize + kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      char* base =
          static_cast<char*>(::mmap(reinterpret_cast<void*>((room + kHuge) & ~(kHuge - 1)), kSharedPages * kPageSize,
                                    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, object_.get(), 0));
      object_.reset();
      talk_->base = reinterpret_cast<uint64_t>(base);
      const auto uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
      talk_->userfaultfd = uffd;
      while (!talk_->go) ::usleep(50);
      ::close(uffd);
      ::_exit(body(base, *talk_));
    }
    pidfd_ = std::move(*open_pidfd(pid_));
    const Deadline deadline = Deadline::in(kPatience);
    while (talk_->userfaultfd < 0 && !deadline.passed()) ::usleep(50);
  }
  ~SharedProgram() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::munmap(talk_, sizeof(SharedTalk));
  }

  std::vector<LazyMemory> register_memory() {
    Fd uffd = get_remote_fd(pidfd_.get(), talk_->userfaultfd);
    uffdio_api api{.api = UFFD_API,
                   .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP |
                               UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM};
    EXPECT_EQ(::ioctl(uffd.get(), UFFDIO_API, &api), 0);
    uffdio_register order{.range = {talk_->base, kSharedPages * kPageSize},
                          .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR};
    EXPECT_EQ(::ioctl(uffd.get(), UFFDIO_REGISTER, &order), 0);
    const auto range = [](uint64_t start) {
      return RemoteRange{RemoteAddr(start), RemoteAddr(start + kSharedPages * kPageSize)};
    };
    std::vector<LazyMemory> all;
    all.push_back({kSharedMappings, std::move(uffd), pidfd_.dup(), {range(talk_->base)}, {{kBase, kSharedPages}}});
    all.push_back({kObject, object_.dup(), pidfd_.dup(), {range(kBase)}, {}});
    for (uint64_t i = 0; i < kSharedPages; ++i)
      if (all_ || exists(i)) all.back().missing.push_back({i * kPageSize, 1});
    object_.reset();
    return all;
  }
  void go() { talk_->go = true; }
  SharedTalk& talk() { return *talk_; }
  int ended() {
    pollfd waited{pidfd_.get(), POLLIN, 0};
    if (::poll(&waited, 1, static_cast<int>(kPatience.count())) != 1) return -1;
    int status = 0;
    ::waitpid(std::exchange(pid_, 0), &status, 0);
    return status;
  }

 private:
  const bool all_;  ///< pages are missing, not only those that exist in the walk
  SharedTalk* talk_;
  Fd object_, pidfd_;
  pid_t pid_ = 0;
};

/// Serves faults, and fills in an order of its own, slowly.
class SharedDaemon {
 public:
  using Make = std::function<std::unique_ptr<LazyMemories>(LazyMemories::Wanted)>;
  SharedDaemon(uint64_t seed, std::chrono::microseconds pause, const Make& make) : seed_(seed), pause_(pause) {
    memories_ = make([this](MemoryId memory, uint64_t source) {
      EXPECT_EQ(memory, kObject);
      const std::lock_guard lock(mutex_);
      wanted_.push_back(source);
      ++asked_;
    });
    threads_.emplace_back([this] {
      while (!stop_) memories_->serve(std::chrono::milliseconds(20));
    });
    threads_.emplace_back([this] { bring(); });
    threads_.emplace_back([this] { fill(); });
  }
  ~SharedDaemon() {
    stop_ = true;
    for (std::thread& t : threads_) t.join();
  }
  LazyMemories& memories() { return *memories_; }
  uint64_t asked() const { return asked_; }
  void be_slow() { slow_ = true; }
  void write(uint64_t offset, uint64_t pages) {
    std::vector<std::byte> bytes(pages * kPageSize);
    auto* words = reinterpret_cast<uint64_t*>(bytes.data());
    for (uint64_t w = 0; w < pages * 512; ++w) words[w] = word_of(offset / kPageSize + w / 512, w % 512);
    memories_->write(kObject, offset, bytes);
  }
  void stop_threads() {
    stop_ = true;
    for (std::thread& t : threads_) t.join();
    threads_.clear();
  }

 private:
  void bring() {
    while (!stop_) {
      uint64_t source = 0;
      {
        const std::lock_guard lock(mutex_);
        if (!wanted_.empty()) source = wanted_.front() + 1, wanted_.pop_front();
      }
      if (source != 0) {
        write(source - 1, 1);
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
      const auto all = missing.find(kObject);
      if (all == missing.end()) {
        ::usleep(500);
        continue;
      }
      const PageRun run = all->second[random() % all->second.size()];
      write(run.address, std::min<uint64_t>(run.pages, 1 + random() % 16));
      std::this_thread::sleep_for(pause_);
    }
  }

  const uint64_t seed_;
  const std::chrono::microseconds pause_;
  std::unique_ptr<LazyMemories> memories_;
  std::mutex mutex_;
  std::deque<uint64_t> wanted_;
  std::atomic<uint64_t> asked_{0};
  std::atomic<bool> stop_{false}, slow_{false};
  std::vector<std::thread> threads_;
};

/// More rounds, when somebody looks for what is rare: LAZY_ROUNDS.
uint64_t many() {
  const char* rounds = ::getenv("LAZY_ROUNDS");
  return rounds != nullptr ? std::strtoull(rounds, nullptr, 10) : 1;
}

int walk(char* base, SharedTalk& talk, uint64_t seed) { return SharedWalk(base, talk, seed).run(400); }

TEST(SharedMemory, AnythingIsDoneToItWhileItComes) {
  for (uint64_t seed = 1; seed <= 6 * many(); ++seed) {
    SharedProgram program([seed](char* base, SharedTalk& talk) { return walk(base, talk, seed); });
    SharedDaemon daemon(seed, std::chrono::microseconds(seed % 2 == 0 ? 300 : 3000), [&](LazyMemories::Wanted wanted) {
      return std::make_unique<LazyMemories>(program.register_memory(), std::move(wanted));
    });
    program.go();
    const Deadline deadline = Deadline::in(kPatience);
    while (!daemon.memories().whole() && !deadline.passed()) ::usleep(500);
    EXPECT_TRUE(daemon.memories().whole());
    program.talk().enough = true;
    EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
    EXPECT_GT(daemon.asked(), 20u);
    daemon.stop_threads();
    daemon.memories().finish();
    if (HasFailure()) break;
  }
}

/// MADV_COLLAPSE would show all of a huge page's block, without a fault.
TEST(SharedMemory, NoHugePageShowsWhatHasNotCome) {
  SharedProgram program(
      [](char* base, SharedTalk&) {
        const auto page = [base](uint64_t i) {
          return reinterpret_cast<const volatile uint64_t*>(base + i * kPageSize);
        };
        if (::madvise(base, 2 << 20, kCollapse) == 0) return 2;
        if (page(1)[7] != word_of(1, 7)) return 3;
        // The page that the host holds goes, and comes again as zeros: then the block has no hole and is held no more.
        if (::madvise(base, kPageSize, MADV_REMOVE) != 0 || page(0)[0] != 0) return 4;
        ::madvise(base, 2 << 20, kCollapse);
        for (uint64_t i = 1; i < kSharedPages; ++i)
          if (page(i)[511] != word_of(i, 511)) return 5;
        return 0;
      },
      true);
  SharedDaemon daemon(1, std::chrono::milliseconds(5), [&](LazyMemories::Wanted wanted) {
    return std::make_unique<LazyMemories>(program.register_memory(), std::move(wanted));
  });
  program.go();
  EXPECT_EQ(program.ended(), 0);
}

TEST(SharedMemory, WhatIsLostIsNotZeros) {
  SharedProgram program([](char* base, SharedTalk& talk) {
    while (!talk.enough) ::usleep(1000);
    if (::fork() == 0) {
      const auto zero = *reinterpret_cast<volatile char*>(base);
      ::_exit(zero == 0 ? 7 : 8);
    }
    int status = 0;
    ::wait(&status);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS ? 0 : 1;
  });
  LazyMemories memories(program.register_memory(), [](MemoryId, uint64_t) {});
  program.go();
  memories.poison();
  program.talk().enough = true;
  EXPECT_EQ(program.ended(), 0);
}

TEST(SharedMemory, WhatIsDoneAtTheEndIsRight) {
  for (uint64_t seed = 20; seed <= 20 + 4 * many(); ++seed) {
    SharedProgram program([seed](char* base, SharedTalk& talk) { return walk(base, talk, seed); });
    auto daemon =
        std::make_unique<SharedDaemon>(seed, std::chrono::microseconds(200), [&](LazyMemories::Wanted wanted) {
          return std::make_unique<LazyMemories>(program.register_memory(), std::move(wanted));
        });
    program.go();
    const Deadline deadline = Deadline::in(kPatience);
    while (!daemon->memories().whole() && !deadline.passed()) ::usleep(500);
    daemon->stop_threads();
    daemon->memories().finish();  // while it runs
    daemon.reset();
    program.talk().enough = true;
    EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
    if (HasFailure()) break;
  }
}

/// A lazy host of a program's shared memory, in processes of its own.
class SharedHost {
 public:
  struct State {
    std::array<std::atomic<pid_t>, 3> members{};
    std::atomic<bool> adopted{false}, whole{false}, end{false};
    std::atomic<unsigned> generation{0};
  };
  SharedHost(SharedProgram& program, uint64_t seed)
      : state_(new (::mmap(nullptr, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) State) {
    std::vector<LazyMemory> memories = program.register_memory();
    if (::fork() != 0) return;
    state_->members[0] = ::getpid();
    hold(memories, seed);
  }
  ~SharedHost() {
    const Deadline deadline = Deadline::in(kPatience);
    while (!gone() && !deadline.passed())
      for (const auto& pid : state_->members)
        if (lives(pid)) ::kill(pid, SIGKILL);
    ::munmap(state_, sizeof(State));
  }
  State& state() { return *state_; }
  bool complete() const {
    std::set<pid_t> alive;
    for (const auto& pid : state_->members)
      if (lives(pid)) alive.insert(pid);
    return alive.size() == state_->members.size();
  }
  void kill(size_t place) const {
    const pid_t pid = state_->members[place];
    ::kill(pid, SIGKILL);
    const Deadline deadline = Deadline::in(kPatience);
    while (lives(pid) && !deadline.passed()) ::usleep(50);
    EXPECT_FALSE(lives(pid));
  }
  bool gone() const {
    return std::ranges::none_of(state_->members, [](const auto& pid) { return lives(pid); });
  }

 private:
  static bool lives(pid_t pid) {
    const auto task = pid == 0 ? std::nullopt : open_pidfd(pid);
    pollfd ended{task ? task->get() : -1, POLLIN, 0};
    return task && ::poll(&ended, 1, 0) == 0;
  }
  [[noreturn]] void hold(std::vector<LazyMemory>& memories, uint64_t seed) {
    HoldOptions options;
    std::vector<LazyMemory> plain;
    for (size_t i = 0; i < memories.size(); ++i) {
      plain.push_back({memories[i].memory, {}, {}, memories[i].ranges, memories[i].missing});
      options.kept["memory" + std::to_string(i)] = std::move(memories[i].userfaultfd);
      options.kept["process" + std::to_string(i)] = std::move(memories[i].process);
    }
    options.placed = [this](unsigned place, unsigned) { state_->members[place] = ::getpid(); };
    options.pace = std::chrono::milliseconds(0);
    options.say = [](const std::string& what) {
      if (what.find(" goes on") == std::string::npos) std::fprintf(stderr, "%s\n", what.c_str());
    };
    hold_lazily(std::move(options), [&](LazyHost& host) { serve(host, plain, seed); });
  }
  void serve(LazyHost& host, const std::vector<LazyMemory>& plain, uint64_t seed) {
    state_->generation = host.generation();
    SharedDaemon daemon(seed + host.generation(), std::chrono::microseconds(1500), [&](LazyMemories::Wanted wanted) {
      if (host.adopted()) return host.memories(std::move(wanted));
      std::vector<LazyMemory> all;
      for (size_t i = 0; i < plain.size(); ++i) {
        const auto copy = [&](const char* name) {
          return Fd(::fcntl(host.kept(name + std::to_string(i)), F_DUPFD_CLOEXEC, 0));
        };
        all.push_back({plain[i].memory, copy("memory"), copy("process"), plain[i].ranges, plain[i].missing});
      }
      return host.adopt(std::move(all), std::move(wanted));
    });
    for (size_t i = 0; i < plain.size(); ++i)
      for (const char* name : {"memory", "process"}) host.drop(name + std::to_string(i));
    state_->adopted = true;
    daemon.be_slow();
    while (!host.alone()) {
      if (daemon.memories().whole()) {
        state_->whole = true;
        if (state_->end) {
          daemon.stop_threads();
          return daemon.memories().finish();
        }
      }
      ::usleep(200);
    }
  }

  State* state_;
};

TEST(SharedMemory, WhoBringsItIsKilled) {
  for (uint64_t seed = 40; seed < 40 + 3 * many(); ++seed) {
    SharedProgram program([seed](char* base, SharedTalk& talk) { return walk(base, talk, seed); });
    SharedHost host(program, seed);
    std::mt19937_64 random(seed);
    const auto until = [](const auto& done) {
      const Deadline deadline = Deadline::in(kPatience);
      while (!done() && !deadline.passed()) ::usleep(100);
      return done();
    };
    ASSERT_TRUE(until([&] { return host.state().adopted && host.complete(); }));
    program.go();
    int kills = 0;
    for (; !host.state().whole; ++kills) {
      ASSERT_TRUE(until([&] { return host.complete() || host.state().whole; }));
      ::usleep(random() % 20000);
      host.kill(random() % 2 == 0 ? 0 : 1 + random() % 2);
    }
    EXPECT_GT(kills, 4);
    EXPECT_GT(host.state().generation, 1u);
    program.talk().enough = true;
    EXPECT_EQ(program.ended(), 0) << program.talk().trouble.data();
    ASSERT_TRUE(until([&] { return host.complete(); }));
    host.state().end = true;
    EXPECT_TRUE(until([&] { return host.gone(); }));
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace migrate::lazy_testing
