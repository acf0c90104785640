#include "core/inject/harvest.h"

#include <cstring>
#include <optional>
#include <string>

#include "core/inject/visit.h"

namespace migrate {
namespace {

int64_t demand(int64_t result, const char* call, pid_t tid) {
  if (result < 0) throw Error(call, "in thread " + std::to_string(tid), static_cast<int>(-result));
  return result;
}

timespec to_timespec(const parasite::Timespec& t) { return {t.sec, t.nsec}; }

ThreadHarvest to_harvest(Tid tid, const parasite::Thread& t, int64_t securebits, const RseqState& rseq) {
  const pid_t id = tid.get();
  demand(t.altstack_result, "sigaltstack", id);
  demand(t.tid_address_result, "prctl(PR_GET_TID_ADDRESS)", id);
  demand(t.pdeath_result, "prctl(PR_GET_PDEATHSIG)", id);
  ThreadHarvest h{.tid = tid};
  h.altstack.ss_sp = reinterpret_cast<void*>(t.altstack.sp);
  h.altstack.ss_flags = t.altstack.flags;
  h.altstack.ss_size = t.altstack.size;
  h.clear_child_tid = t.tid_address;
  h.pdeath_signal = t.pdeath_signal;
  h.securebits = static_cast<uint32_t>(demand(securebits, "prctl(PR_GET_SECUREBITS)", id));
  h.rseq = rseq;
  return h;
}

TaskHarvest to_harvest(const StoppedTask& task, const Visit& visit) {
  const parasite::Area area = visit.area();  // one look: it may change
  const pid_t pid = task.pid.get();
  demand(area.first_error, "collect the state", pid);
  TaskHarvest h{.pid = task.pid};
  for (size_t i = 0; i < h.sigactions.size(); ++i) {
    const parasite::Sigaction& a = area.sigactions[i];
    h.sigactions[i] = {a.handler, a.flags, a.restorer, a.mask};
  }
  for (size_t i = 0; i < h.itimers.size(); ++i) {
    const parasite::Itimer& t = area.itimers[i];
    h.itimers[i] = {{t.interval_sec, t.interval_usec}, {t.value_sec, t.value_usec}};
  }
  h.dumpable = static_cast<int>(demand(area.dumpable, "prctl(PR_GET_DUMPABLE)", pid));
  h.child_subreaper = area.child_subreaper;
  h.thp_disabled = static_cast<int>(demand(area.thp_disabled, "prctl(PR_GET_THP_DISABLE)", pid));
  h.brk = static_cast<uint64_t>(area.brk);
  h.membarrier_registrations = area.membarrier < 0 ? 0 : static_cast<int>(area.membarrier);
  h.monotonic = to_timespec(area.monotonic);
  h.boottime = to_timespec(area.boottime);
  const Tid leader = task.threads.front().tid;
  h.threads.push_back(to_harvest(leader, area.leader, visit.securebits(), visit.rseq(leader)));
  return h;
}

TimerHarvest to_harvest(const parasite::Timer t, int id, pid_t pid) {
  demand(t.error, "timer_gettime", pid);
  demand(t.overrun, "timer_getoverrun", pid);
  TimerHarvest h{.id = id, .overrun = t.overrun};
  h.value = {{t.interval_sec, t.interval_nsec}, {t.value_sec, t.value_nsec}};
  return h;
}

}  // namespace

TaskHarvest harvest(StoppedTask& task, const std::vector<int>& posix_timer_ids, Logger& log, const FaultHook& hook,
                    DomainWitnesses* witnesses) {
  std::optional<DomainWitnesses> own;
  Visit visit(task, posix_timer_ids, witnesses != nullptr ? *witnesses : own.emplace(), hook, log);
  visit.run_leader();
  TaskHarvest result = to_harvest(task, visit);
  for (size_t i = 0; i < posix_timer_ids.size(); ++i) {
    result.posix_timers.push_back(to_harvest(visit.timers()[i], posix_timer_ids[i], task.pid.get()));
  }
  for (size_t i = 1; i < task.threads.size(); ++i) {
    StoppedThread& thread = task.threads[i];
    const ThreadSlotResults returned = visit.run_thread(thread);
    parasite::Thread t = visit.area().thread;
    t.altstack_result = returned.altstack;
    t.tid_address_result = returned.tid_address;
    t.pdeath_result = returned.pdeath_signal;
    result.threads.push_back(to_harvest(thread.tid, t, returned.securebits, visit.rseq(thread.tid)));
  }
  visit.cure();
  return result;
}

}  // namespace migrate
