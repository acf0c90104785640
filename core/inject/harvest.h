// What only the task itself can tell: one visit of a parasite a task collects it all (see core/inject/README.md for how
// the visit is made so that our death at any instruction lets the task run on undisturbed).
#pragma once

#include <linux/time_types.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "core/freeze/stopped_tree.h"
#include "core/inject/domain_witness.h"
#include "core/inject/thread_checks.h"

namespace migrate {

/// The kernel's struct sigaction on x86-64 (not the C library's).
struct KernelSigaction {
  uint64_t handler;
  uint64_t flags;
  uint64_t restorer;
  uint64_t mask;
};

struct ThreadHarvest {
  Tid tid;
  stack_t altstack{};                       ///< sigaltstack(2)
  uint64_t clear_child_tid = 0;             ///< PR_GET_TID_ADDRESS
  int pdeath_signal = 0;                    ///< PR_GET_PDEATHSIG
  uint32_t securebits = 0;                  ///< PR_GET_SECUREBITS
  RseqState rseq;                           ///< before the visit
  std::map<uint32_t, uint64_t> attributes;  ///< by id (attributes.h), those that are not as usual
};

struct TimerHarvest {
  int id = 0;
  itimerspec value{};  ///< timer_gettime(2): remaining time, interval
  int overrun = 0;
  int64_t read_ns = 0;   ///< so long after TaskHarvest::monotonic at most
  int64_t doubt_ns = 0;  ///< it may have been so much earlier
};

/// mbind(2)
struct MappingPolicy {
  RemoteRange range;
  uint32_t mode = 0;  ///< with its flags
  uint64_t nodes = 0;
};

struct TaskHarvest {
  Pid pid;
  std::array<KernelSigaction, 64> sigactions{};  ///< [0] is signal 1
  std::array<itimerval, 3> itimers{};            ///< real, virtual, prof
  std::vector<TimerHarvest> posix_timers;        ///< for the ids asked for, in that order
  int dumpable = 0;                              ///< PR_GET_DUMPABLE
  int child_subreaper = 0;
  int thp_disabled = 0;
  uint32_t thp_flags = 0;               ///< of PR_GET_THP_DISABLE (6.18)
  std::vector<uint64_t> ldt;            ///< descriptors of modify_ldt(2)
  std::vector<MappingPolicy> policies;  ///< of mappings that have one of their own
  uint32_t mdwe = 0;                    ///< PR_GET_MDWE
  bool memory_merge = false;            ///< PR_GET_MEMORY_MERGE
  uint32_t lock_future = 0;             ///< of mlockall(2): MCL_FUTURE, MCL_ONFAULT
  uint64_t brk = 0;                     ///< brk(0)
  int membarrier_registrations = 0;     ///< MEMBARRIER_CMD_GET_REGISTRATIONS, 0 where the kernel lacks it
  struct timespec monotonic {
  }, boottime{};                       ///< as the task reads them, right before its timers
  int64_t itimers_read_ns = 0;         ///< so long after `monotonic` at most
  std::vector<ThreadHarvest> threads;  ///< the leader's first, as in StoppedTask::threads
};

/// Called with the name of each stage of a visit, between any two steps that touch the task: for tests.
using FaultHook = std::function<void(const char* stage)>;

/// Visits one stopped task (not a zombie). `posix_timer_ids` as /proc/PID/timers lists them. On return every thread is
/// ptrace-stopped again with exactly the registers, masks and mappings it had, but for threads in a restartable
/// sequence, which were moved to its abort address, as any interruption by the kernel does (`task` tells so, too).
/// Throws Refusal or Error with the task cured. `witnesses`: made before if given, else a process is forked meanwhile.
TaskHarvest harvest(StoppedTask& task, const std::vector<int>& posix_timer_ids, Logger& log, const FaultHook& hook = {},
                    DomainWitnesses* witnesses = nullptr);

}  // namespace migrate
