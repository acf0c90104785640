// inotify instances: their watches, by the files that these are on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/files/open_file.h"

namespace migrate {

/// A watch, as fdinfo tells it.
struct InotifyWatch {
  uint32_t wd = 0, mask = 0;
  uint64_t inode = 0;
  uint32_t device = 0;  ///< of the super block: major << 20 | minor, as /proc/self/mountinfo has it
  int handle_type = 0;
  std::vector<std::byte> handle;  ///< for open_by_handle_at(2); none: the file system has no such
};

/// Ascending by wd. Throws Corrupt.
std::vector<InotifyWatch> inotify_watches(std::string_view fdinfo);

/// Bytes of events that nobody has read. They cannot be looked at without taking them from the program.
int queued_events(int inotify, const std::string& who);
Refusal events_not_read(const std::string& who);

}  // namespace migrate
