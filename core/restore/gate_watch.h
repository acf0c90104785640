// Noticing from inside a namespace that the gate's cgroup was thawed, by whomever.
#pragma once

#include <sys/types.h>

#include <array>

#include "core/base/fd.h"
#include "core/freeze/freezer_cgroup.h"

namespace migrate {

class GateWatch {
 public:
  /// Opens the gate's files; they stay readable when the cgroup file system no longer is in sight. Not its folder: from
  /// there ".." would lead out of the root folder of whoever has it open.
  explicit GateWatch(const FreezerCgroup::Record& gate);

  enum class Outcome { open, empty };
  /// Returns when the gate is open, or when nobody is left in it (its folder may be gone).
  Outcome wait();
  /// The descriptors, to be moved to other numbers.
  std::array<Fd*, 2> files() { return {&state_, &freeze_}; }

 private:
  bool asked_to_be_open() const;

  Fd state_;   ///< cgroup.events, or freezer.state of v1
  Fd freeze_;  ///< cgroup.freeze of v2
  bool v2_;
};

}  // namespace migrate
