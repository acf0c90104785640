// A child process that acts when we die.
#pragma once

#include <sys/types.h>

#include <functional>

#include "core/base/fd.h"

namespace migrate {

/// Runs `work` in a forked child. The child holds none of our descriptors, is deaf to SIGINT, SIGTERM and SIGHUP, and
/// must return from `work` once `parent_died(milliseconds)` says so. Destroying a Keeper kills it.
class Keeper {
 public:
  /// In the child: waits that long (-1: without end) for our death; true if we are dead.
  using ParentDied = std::function<bool(int milliseconds)>;
  explicit Keeper(const std::function<void(const ParentDied&)>& work);
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;
  ~Keeper();
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

}  // namespace migrate
