// Between tries that wait for a task to run.
#pragma once

#include <sched.h>

#include <chrono>
#include <thread>

namespace migrate {

/// At first it has only just been woken, later it waits for a processor.
class Patience {
 public:
  void wait() {
    if (++tries_ < 20) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  int tries_ = 0;
};

}  // namespace migrate
