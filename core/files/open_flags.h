// Flags of regular files in images, and what open(2) may see of them.
#pragma once

#include <fcntl.h>

#include <cstdint>

namespace migrate {

/// O_TMPFILE holds O_DIRECTORY too, and both stay in the flags of the description.
inline bool made_as_tmpfile(uint32_t flags) { return (flags & O_TMPFILE) == O_TMPFILE; }

/// Nothing that creates or empties. O_NONBLOCK: no waiting for the other end of a FIFO; the caller sets the wanted
/// status flags afterwards.
inline int open_flags(uint32_t flags) {
  constexpr uint32_t kKept =
      O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_DIRECT | O_NOATIME | O_PATH | O_DIRECTORY;
  const uint32_t kept = made_as_tmpfile(flags) ? flags & ~static_cast<uint32_t>(O_DIRECTORY) : flags;
  return static_cast<int>(kept & kKept) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
}

}  // namespace migrate
