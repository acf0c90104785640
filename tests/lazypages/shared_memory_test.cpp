// Shared memory that comes while several processes use it.
#include <gtest/gtest.h>

#include <set>

#include "lazypages/lazy_host.h"
#include "tests/core/seeds.h"
#include "tests/lazypages/shared_program.h"

namespace migrate::lazy_testing {
namespace {

/// MIGRATE_TEST_ROUNDS: more, when somebody looks for what is rare.
uint64_t rounds(uint64_t usual) { return number_from("MIGRATE_TEST_ROUNDS", usual); }

/// Every other has private memory, too, and so two userfaultfds: before or after the other in its address space.
SharedProgram::Options both(uint64_t seed) { return {.beside = seed % 2 == 0 ? 0 : seed % 4 == 1 ? -1 : 1}; }

int walk(char* base, SharedTalk& talk, uint64_t seed) { return SharedWalk(base, talk, seed).run(400); }

TEST(SharedMemory, AnythingIsDoneToItWhileItComes) {
  for (uint64_t seed = 1; seed <= rounds(6); ++seed) {
    SharedProgram program([seed](char* base, SharedTalk& talk) { return walk(base, talk, seed); }, both(seed));
    SharedDaemon daemon(program.talk(), seed, std::chrono::microseconds(seed % 2 == 0 ? 300 : 3000),
                        [&](LazyMemories::Wanted wanted) {
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
      {.all = true});
  SharedDaemon daemon(program.talk(), 1, std::chrono::milliseconds(5), [&](LazyMemories::Wanted wanted) {
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
  for (uint64_t seed = 20; seed < 20 + rounds(5); ++seed) {
    SharedProgram program([seed](char* base, SharedTalk& talk) { return walk(base, talk, seed); }, both(seed));
    auto daemon = std::make_unique<SharedDaemon>(
        program.talk(), seed, std::chrono::microseconds(200), [&](LazyMemories::Wanted wanted) {
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
      : talk_(&program.talk()),
        state_(new (::mmap(nullptr, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) State) {
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
    SharedDaemon daemon(
        *talk_, seed + host.generation(), std::chrono::microseconds(1500), [&](LazyMemories::Wanted wanted) {
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

  const SharedTalk* talk_;
  State* state_;
};

TEST(SharedMemory, WhoBringsItIsKilled) {
  for (uint64_t seed = 40; seed < 40 + rounds(3); ++seed) {
    SharedProgram program([seed](char* base, SharedTalk& talk) { return walk(base, talk, seed); }, both(seed));
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
