// What processes have done to semaphores with SEM_UNDO: adjustments that are made when they end. No system call tells
// them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "core/base/fd.h"

namespace migrate {

struct UndoList {
  pid_t pid = 0;                     ///< as our pid namespace numbers it
  int set = 0;                       ///< the semaphore set's number
  std::vector<int16_t> adjustments;  ///< more than the set has semaphores: what is behind those means nothing
};

/// The most semaphores of a set whose adjustments can be read.
inline constexpr uint64_t kMostUndone = 128;

/// Reads them by a BPF iterator over tasks (Linux 5.8).
class UndoReader {
 public:
  /// nullopt where that cannot be had. Takes a tenth of a second.
  static std::optional<UndoReader> open();
  /// Of those processes. Throws Error if it fails; Refusal for threads that have several.
  std::vector<UndoList> read(const std::set<pid_t>& pids) const;

 private:
  explicit UndoReader(Fd program) : program_(std::move(program)) {}
  Fd program_;
};

/// Whether a process may have such a list: all of several threads do, though most of them are empty.
bool may_have_undos(pid_t pid);

}  // namespace migrate
