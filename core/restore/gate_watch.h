// Noticing from inside a namespace that the gate's cgroup was thawed, by whomever.
#pragma once

#include <sys/types.h>

#include "core/base/fd.h"
#include "core/freeze/freezer_cgroup.h"

namespace migrate {

class GateWatch {
 public:
  /// Opens the gate's folder; what is in it stays readable when the cgroup file system no longer is in sight.
  explicit GateWatch(const FreezerCgroup::Record& gate);

  enum class Outcome { open, empty };
  /// Returns when the gate is open, or when nobody is left in it (its folder may be gone).
  Outcome wait();
  /// The descriptor, to be moved to another number.
  Fd& file() { return folder_; }

 private:
  bool asked_to_be_open() const;

  Fd folder_;
  bool v2_;
};

}  // namespace migrate
