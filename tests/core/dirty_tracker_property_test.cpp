// Random programs, tracked through rounds: at the end the receiver's memory is the program's, page by page. And the
// proof that the test would notice: each rule of the tracker taken out makes it fail.
//
// MIGRATE_TRACK_SEEDS=N runs N seeds (default: a handful), from MIGRATE_TRACK_FIRST on (scripts/prove-tracker).
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <random>

#include "core/base/deadline.h"
#include "tests/core/memory_churn.h"
#include "tests/core/seeds.h"
#include "tests/core/tracking.h"

namespace migrate {
namespace {

class ChurningProgram {
 public:
  explicit ChurningProgram(uint64_t seed) {
    control_ = new_churn_control(fd_);
    pid_ = start_churn(seed, fd_);
  }
  ~ChurningProgram() {
    control_->quiet = 1;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(control_, kPageSize);
    ::close(fd_);
  }
  ChurningProgram(const ChurningProgram&) = delete;
  ChurningProgram& operator=(const ChurningProgram&) = delete;
  Pid pid() const { return Pid(pid_); }
  bool goes_on(uint64_t steps) const {
    const uint64_t target = control_->steps + steps;
    const Deadline deadline = Deadline::in(std::chrono::seconds(20));
    while (control_->steps < target) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) != 0) {
        ADD_FAILURE() << "the program ended with status " << std::hex << status;
        return false;
      }
      if (deadline.passed()) return false;
      ::usleep(200);
    }
    return true;
  }

 private:
  ChurnControl* control_;
  int fd_ = -1;
  pid_t pid_;
};

/// Empty: equal at the end.
std::string track(uint64_t seed, const TrackRules& rules) {
  std::mt19937_64 random(seed);
  ChurningProgram program(seed);
  if (!program.goes_on(100)) return "the program does not start";
  const LoggerPtr log = null_logger();
  DirtyTracker tracker({.root = program.pid(), .by_content = seed % 2 == 0, .rules = rules}, *log);
  ModelReceiver receiver;
  const uint64_t rounds = 1 + random() % 5;
  for (uint64_t i = 0; i < rounds; ++i) {
    const DirtyTracker::Round round = tracker.next_round();
    if (random() % 4 == 0 && !program.goes_on(random() % 50)) return "the program does not go on";
    if (random() % 6 == 0) {  // not sent
      tracker.put_back(round);
      continue;
    }
    receiver.apply(round);
    if (!program.goes_on(random() % 200)) return "the program does not go on";
  }
  return receiver.finish(tracker, program.pid(), *log);
}

TEST(DirtyTrackerProperty, ReceiverEndsWithTheSameMemory) {
  for (const uint64_t seed : track_seeds(12)) EXPECT_EQ(track(seed, {}), "") << "seed " << seed;
}

TEST(DirtyTrackerProperty, EachRuleIsNeeded) {
  const std::pair<const char*, bool TrackRules::*> mutants[] = {
      {"new mappings count as written", &TrackRules::new_is_written},
      {"report discards", &TrackRules::report_discards},
      {"zeros over contents", &TrackRules::zeros_over_contents},
      {"send what was written", &TrackRules::send_written},
      {"scan at the end", &TrackRules::last_scan},
      {"compare at the end", &TrackRules::compare_at_end},
  };
  for (const auto& [name, rule] : mutants) {
    TrackRules rules;
    rules.*rule = false;
    expect_noticed("write protection", name, 60, [&](uint64_t seed) { return track(seed, rules); });
  }
}

}  // namespace
}  // namespace migrate
