#include "core/inject/harvest.h"

#include <optional>

#include "core/inject/answers.h"
#include "core/inject/visit.h"

namespace migrate {

TaskHarvest harvest(StoppedTask& task, const std::vector<int>& posix_timer_ids, Logger& log, const FaultHook& hook,
                    DomainWitnesses* witnesses) {
  std::optional<DomainWitnesses> own;
  Visit visit(task, posix_timer_ids, witnesses != nullptr ? *witnesses : own.emplace(), hook, log);
  visit.run_leader();
  const parasite::Area told = visit.area();
  TaskHarvest result = answered_task(told, task.pid);
  refuse_keys(told, task.pid);
  result.policies = answered_policies(told, visit.mappings(), task.pid);
  const auto add_thread = [&](ThreadHarvest h) {
    h.rseq = visit.rseq(h.tid);
    result.threads.push_back(h);
  };
  add_thread(answered_thread(told.leader, task.threads.front().tid, visit.securebits()));
  for (size_t i = 0; i < posix_timer_ids.size(); ++i)
    result.posix_timers.push_back(answered_timer(told, visit.timer(i), posix_timer_ids[i], task.pid));
  for (size_t i = 1; i < task.threads.size(); ++i) {
    StoppedThread& thread = task.threads[i];
    const ThreadSlotResults returned = visit.run_thread(thread);
    add_thread(answered_thread(visit.visited_thread(), thread.tid, returned));
  }
  visit.cure();
  return result;
}

}  // namespace migrate
