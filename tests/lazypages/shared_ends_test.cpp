// How shared memory ends that comes late: given back or lost while its program forks, by one who follows another.
#include <gtest/gtest.h>

#include <future>

#include "lazypages/lazy_record.h"
#include "tests/lazypages/shared_program.h"

namespace migrate::lazy_testing {
namespace {

int forks_until_enough(SharedTalk& talk) {
  while (!talk.enough) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    ++talk.progress;
    int status = 0;
    if (child < 0 || ::waitpid(child, &status, 0) != child || status != 0) return 2;
  }
  return 0;
}

/// All that is missing of the memory.
void bring_all(LazyMemories& memories, const SharedTalk& talk) {
  for (const auto& [memory, runs] : memories.missing()) {
    for (const PageRun& run : runs) write_pages_of(memories, talk, memory, run.address, run.pages);
  }
}

// fork(2) tells the two userfaultfds one after the other, and waits for each. `beside`: who is told first.
class SharedEnds : public ::testing::TestWithParam<std::pair<int, bool>> {};

TEST_P(SharedEnds, NobodyHangsWhoForksMeanwhile) {
  const auto [beside, lost] = GetParam();
  for (int round = 0; round < 5 && !HasFailure(); ++round) {
    SharedProgram program(
        [lost = lost](char* base, SharedTalk& talk) {
          if (const int trouble = forks_until_enough(talk); trouble != 0) return trouble;
          const auto* own = reinterpret_cast<const uint64_t*>(uint64_t{talk.beside});
          for (uint64_t i = 0; i < kSharedPages && !lost; ++i)
            if (reinterpret_cast<const uint64_t*>(base)[i * 512 + 5] != word_of(i, 5)) return 3;
          for (uint64_t i = 0; i < kBesidePages && !lost; ++i)
            if (own[i * 512 + 5] != word_of(i, 5)) return 4;
          return 0;
        },
        {.all = true, .beside = beside});
    LazyMemories memories(program.register_memory(), [](MemoryId, uint64_t) {});
    if (!lost) bring_all(memories, program.talk());
    program.go();
    std::future<void> end = std::async(std::launch::async, [&, lost = lost] {
      const Deadline deadline = Deadline::in(kPatience);
      while (program.talk().progress < 20 && !deadline.passed()) memories.serve(std::chrono::milliseconds(5));
      lost ? memories.poison() : memories.finish();
    });
    const bool ended = end.wait_for(kPatience) == std::future_status::ready;
    EXPECT_TRUE(ended) << "after " << program.talk().progress << " forks";
    program.talk().enough = true;
    if (!ended) ::kill(program.pid(), SIGKILL);  // it ends with the program
    end.get();
    EXPECT_EQ(memories.spaces(), 0u);
    EXPECT_TRUE(!ended || program.ended() == 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Both, SharedEnds,
                         ::testing::Values(std::pair(-1, false), std::pair(1, false), std::pair(-1, true),
                                           std::pair(1, true)),
                         [](const auto& one) {
                           return std::string(one.param.first < 0 ? "PrivateIsFirst" : "SharedIsFirst") +
                                  (one.param.second ? "Lost" : "GivenBack");
                         });

// When there is room for one fork at a time it is for both of its userfaultfds: with one alone it would never end.
TEST(LazyForks, OfWhoHasSharedMemoryTooFindRoomForBoth) {
  for (const int beside : {-1, 1}) {
    SCOPED_TRACE(beside);
    SharedProgram program([](char*, SharedTalk& talk) { return forks_until_enough(talk); },
                          {.all = true, .beside = beside});
    LazyMemories memories(program.register_memory(), [](MemoryId, uint64_t) {});
    memories.allow(0);
    program.go();
    const Deadline deadline = Deadline::in(kPatience);
    while (program.talk().progress < 3 && !deadline.passed()) memories.serve(std::chrono::milliseconds(5));
    EXPECT_GE(program.talk().progress, 3U);
    program.talk().enough = true;
    memories.allow(SpaceRoom::kMost);
    const Deadline end = Deadline::in(kPatience);
    while (!program.has_ended() && !end.passed()) memories.serve(std::chrono::milliseconds(5));
    EXPECT_EQ(program.ended(), 0);
  }
}

struct Killed {};

TEST(SharedMemory, WhoFollowsInTheMiddleOfALossGoesOnWithIt) {
  SharedProgram program([](char* base, SharedTalk& talk) {
    while (!talk.enough) ::usleep(1000);
    if (::fork() == 0) ::_exit(*reinterpret_cast<volatile char*>(base) == 0 ? 7 : 8);
    int status = 0;
    ::wait(&status);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS ? 0 : 1;
  });
  RecordRoot root;
  LazyRecord::make(root);
  const auto wanted = [](MemoryId, uint64_t) {};
  {
    const auto dies = [](const char* step) {
      if (std::string_view(step) == "object-cut") throw Killed();
    };
    LazyMemories memories(program.register_memory(), wanted, std::make_shared<LazyRecord>(root, dies));
    program.go();
    EXPECT_THROW(memories.poison(), Killed);
  }
  {
    LazyMemories follower(std::make_shared<LazyRecord>(root), wanted);
    EXPECT_EQ(follower.missing_pages(), 0u);
    follower.poison();
  }
  ::close(root.pages);
  ::close(root.logs);
  program.talk().enough = true;
  EXPECT_EQ(program.ended(), 0);
}

}  // namespace
}  // namespace migrate::lazy_testing
