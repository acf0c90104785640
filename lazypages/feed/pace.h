// Who runs when: those who serve faults at once, those who fill when nothing else wants a processor, but not never.
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "pageserver/stop_event.h"

namespace migrate {

/// While it lives the calling thread, which serves faults and never has much to do, runs as soon as it has something,
/// also where others compute: without, one fault in a hundred waits for 1 to 4 ms there, with it for 0.2.
class Prompt {
 public:
  Prompt() noexcept;
  ~Prompt();
  Prompt(const Prompt&) = delete;
  Prompt& operator=(const Prompt&) = delete;

 private:
  struct Before {
    int32_t nice;
    uint64_t slice;
  };
  std::optional<Before> before_;
};

/// Threads that fill. They are idle (sched(7): SCHED_IDLE), so that whoever serves a fault, and the program, need not
/// wait for them; but until memory is whole the program needs two hosts, so they must not starve either: on a processor
/// that is always busy an idle thread gets three thousandths of it. Whoever wants to run and gets little for 100 ms is
/// an ordinary thread for the next second.
class FillPace {
 public:
  /// Without `idle` nothing happens.
  explicit FillPace(bool idle);
  ~FillPace();
  FillPace(const FillPace&) = delete;
  FillPace& operator=(const FillPace&) = delete;

  /// While it lives, the calling thread fills. Ends before the pace does.
  class Member {
   public:
    explicit Member(FillPace& pace);
    ~Member();
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;

   private:
    FillPace& pace_;
  };
  /// How often a thread was found starving.
  uint64_t raised() const { return raised_; }

 private:
  struct Thread;
  void watch();
  void look(Thread& thread);

  const bool idle_;
  StopEvent stop_;
  std::mutex mutex_;
  std::vector<Thread> threads_;
  std::atomic<uint64_t> raised_{0};
  std::thread watcher_;
};

}  // namespace migrate
