#include "core/inject/userfaultfd_visit.h"

#include <optional>
#include <string>

#include "core/inject/visit.h"

namespace migrate {

Fd make_userfaultfd(StoppedTask& task, uint64_t features, Logger& log, const FaultHook& hook,
                    DomainWitnesses* witnesses, uint32_t* securebits) {
  const std::vector<int> no_timers;
  std::optional<DomainWitnesses> own;
  Visit visit(task, no_timers, witnesses != nullptr ? *witnesses : own.emplace(), hook, log);
  visit.run_leader_for_userfaultfd(features);
  const parasite::Area told = visit.area();
  answered_policies(told, visit.mappings(), task.pid);  // what a dump would refuse is refused now
  refuse_keys(told, task.pid);
  Fd uffd = get_remote_fd(task.pidfd.get(), answered_userfaultfd(told.uffd, task.pid));
  // The number came through memory that the task could write.
  if (read_link_at(AT_FDCWD, fd_link(uffd.get())) != "anon_inode:[userfaultfd]")
    throw Error("take the userfaultfd of task " + std::to_string(task.pid.get()) + ": it is something else");
  if (hook) hook("userfaultfd taken");
  if (securebits != nullptr && visit.securebits() >= 0) *securebits = static_cast<uint32_t>(visit.securebits());
  visit.return_userfaultfd();
  visit.cure();
  return uffd;
}

}  // namespace migrate
