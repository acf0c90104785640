// Scheduling of a fill that must not hold up the program.
#pragma once

#include <sched.h>

namespace migrate {

/// The calling thread runs only when nothing else wants the processor.
inline void become_idle() noexcept {
  const sched_param none{};
  ::sched_setscheduler(0, SCHED_IDLE, &none);
}

/// Not so while this lives: a thread that holds a lock which the fault loop waits for must not itself wait for the
/// program. About 1 us.
class OutOfIdle {
 public:
  OutOfIdle() noexcept : idle_(::sched_getscheduler(0) == SCHED_IDLE) {
    const sched_param none{};
    if (idle_) ::sched_setscheduler(0, SCHED_OTHER, &none);
  }
  ~OutOfIdle() {
    if (idle_) become_idle();
  }
  OutOfIdle(const OutOfIdle&) = delete;
  OutOfIdle& operator=(const OutOfIdle&) = delete;

 private:
  bool idle_;
};

}  // namespace migrate
