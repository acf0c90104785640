// sched(7), ioprio_set(2).
#include <sched.h>
#include <sys/resource.h>

#include "small.h"

namespace {

std::string policy_now() {
  sched_param param{};
  must(sched_getparam(0, &param), "sched_getparam");
  return std::to_string(must(sched_getscheduler(0), "sched_getscheduler")) + " " +
         std::to_string(param.sched_priority) + " " + std::to_string(getpriority(PRIO_PROCESS, 0));
}

Verify policy_stays(int policy, int priority) {
  return in_child([=] {
    const sched_param param{priority};
    allowed(sched_setscheduler(0, policy, &param), "set a scheduling policy");
    return stays("the scheduling policy", policy_now);
  });
}

Verify io_priority_stays(int value) {
  return in_child([=] {
    allowed(syscall(SYS_ioprio_set, 1, 0, value), "set an I/O priority");
    return stays("the I/O priority", [] { return syscall(SYS_ioprio_get, 1, 0); });
  });
}

}  // namespace

WORKLOAD(scheduling, batch) { return policy_stays(SCHED_BATCH, 0); }
WORKLOAD(scheduling, idle) { return policy_stays(SCHED_IDLE, 0); }
WORKLOAD(scheduling, fifo) { return policy_stays(SCHED_FIFO, 7); }
WORKLOAD(scheduling, round_robin) { return policy_stays(SCHED_RR, 99); }
WORKLOAD(scheduling, reset_on_fork) { return policy_stays(SCHED_RR | SCHED_RESET_ON_FORK, 3); }

WORKLOAD(scheduling, niceness) {
  return in_child([] {
    must(setpriority(PRIO_PROCESS, 0, 11), "setpriority");
    return stays("the niceness", policy_now);
  });
}

WORKLOAD(scheduling, negative_niceness) {
  return in_child([] {
    allowed(setpriority(PRIO_PROCESS, 0, -7), "lower the niceness");
    return stays("the niceness", policy_now);
  });
}

WORKLOAD(scheduling, niceness_of_realtime) {
  return in_child([] {
    must(setpriority(PRIO_PROCESS, 0, 5), "setpriority");
    const sched_param param{4};
    allowed(sched_setscheduler(0, SCHED_FIFO, &param), "set a scheduling policy");
    return stays("policy and niceness", policy_now);
  });
}

WORKLOAD(scheduling, of_thread) {
  const Verify thread = in_thread([] {
    must(setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 9), "setpriority");
    const sched_param param{0};
    must(sched_setscheduler(0, SCHED_BATCH, &param), "sched_setscheduler");
    return stays("the thread's policy", policy_now);
  });
  const Verify own = stays("the main thread's policy", policy_now);
  return [=] {
    thread();
    own();
  };
}

WORKLOAD(scheduling, one_processor) {
  return in_child([]() -> Verify {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    must(sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
    return [] {
      cpu_set_t now;
      must(sched_getaffinity(0, sizeof now, &now), "sched_getaffinity");
      expect(CPU_COUNT(&now) == 1 && CPU_ISSET(0, &now), "it may run elsewhere");
    };
  });
}

WORKLOAD(scheduling, io_idle) { return io_priority_stays(3 << 13); }
WORKLOAD(scheduling, io_best_effort) { return io_priority_stays((2 << 13) | 6); }
WORKLOAD(scheduling, io_realtime) { return io_priority_stays((1 << 13) | 2); }
