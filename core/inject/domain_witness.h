// Landlock leaves no trace in /proc. But a task in a landlock domain may not look at one outside of it, whatever its
// credentials: kcmp(2) of a task of the same user fails with EPERM then. A witness is such a task to be looked at.
#pragma once

#include <sys/types.h>

#include <list>
#include <string>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"

namespace migrate {

/// /proc/TID/status as key → value.
using ThreadStatus = StatusFields;

/// Witnesses made so far; each is a process of ours that has ended and is not reaped before this goes. Not for use by
/// several threads at a time.
class DomainWitnesses {
 public:
  DomainWitnesses();
  DomainWitnesses(const DomainWitnesses&) = delete;
  DomainWitnesses& operator=(const DomainWitnesses&) = delete;
  ~DomainWitnesses();

  /// The number, in the pid namespace of `task` (or thread), of a witness with its real user and group; 0 if this
  /// kernel has no landlock. Made where there is none yet: a fork, so better while nobody stands still. Throws Error.
  pid_t for_task(const ProcDir& task, const ThreadStatus& status);

 private:
  struct Witness {
    uid_t uid;
    gid_t gid;
    std::string namespace_link;
    pid_t pid;     ///< here
    pid_t number;  ///< there
  };
  bool landlock_;
  std::string our_namespace_;
  std::list<Witness> made_;
};

}  // namespace migrate
