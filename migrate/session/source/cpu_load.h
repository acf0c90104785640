// Who used the processors of this host: the tree, or nobody. For the estimate of what the transport gains when the tree
// stops.
#pragma once

#include <sys/types.h>

#include <map>
#include <utility>

#include "core/base/types.h"

namespace migrate {

/// Seconds of processor time, all processors together.
struct CpuUse {
  double tree = 0, idle = 0, all = 0;
};

/// Counts from its construction on. Never throws: what cannot be read counts as nothing.
class CpuLoad {
 public:
  explicit CpuLoad(Pid root);
  /// Since the call before that gave something new. The kernel counts idle time in hundredths of a second, so in
  /// shorter times than a tenth what was measured before is given again.
  CpuUse since_last();

 private:
  struct Reading {
    std::map<std::pair<pid_t, pid_t>, double> threads;  ///< of the tree, by task and thread: seconds that each ran
    double idle = 0, all = 0;
  };
  Reading read() const;
  Pid root_;
  Reading last_;
  CpuUse use_;
};

}  // namespace migrate
