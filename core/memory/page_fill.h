// Pages of image files into memory of this process, many reads in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace migrate {

/// Pages that stand one after the other in a file, and where they go.
struct PagesIn {
  int fd = -1;
  uint64_t offset = 0;
  std::span<std::byte> to;
};

/// Reads all of `parts`; where there is much to read, through io_uring, in a child that shares this process's memory
/// and that is waited for: nothing of it stays behind, no thread and no descriptor. The caller must be single-threaded.
/// Throws Error, and Corrupt naming `what` if a file is too short.
void read_pages(std::span<const PagesIn> parts, const std::string& what);

}  // namespace migrate
