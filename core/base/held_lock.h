// Locks on open files, as the layers hand them to each other.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/types.h"

namespace migrate {

/// file_lock_entry.flag, CRIU's numbers (the kernel's FL_*).
inline constexpr uint32_t kLockPosix = 1, kLockFlock = 2, kLockDescription = 1024;

/// What one "lock:" line of fdinfo tells.
struct FileLock {
  uint32_t kind = 0;              ///< kLock*; 0: a lease or another kind that cannot be moved
  uint32_t type = 0;              ///< F_RDLCK or F_WRLCK, for flock(2) too
  int64_t start = 0, length = 0;  ///< bytes; length 0: to the end of the file, however it grows
};

/// A lock of a task, as it can be given up and taken again there.
struct HeldLock {
  uint32_t number = 0;  ///< what several tasks have is one lock (flock(2), of a description), with an entry for each
  Pid pid;
  int fd = -1;
  FileLock lock;
  uint64_t device = 0;  ///< stat(2)'s st_dev of the file ...
  uint64_t inode = 0;   ///< ... and its number
  std::string path;     ///< as the task has it open, for people
};

}  // namespace migrate
