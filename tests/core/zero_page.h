// Whether this kernel maps its page of zeros where private memory is read that was never written.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "core/base/types.h"

namespace migrate {

/// Not all do: one for virtual machines may give everybody pages of his own. Told by what counts as resident: the page
/// of zeros is nobody's.
inline bool kernel_maps_zero_page() {
  void* area = ::mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ::madvise(area, kPageSize, MADV_DONTFORK);  // keeps it from merging
  static_cast<void>(*static_cast<volatile char*>(area));
  const auto address = reinterpret_cast<uintptr_t>(area);
  unsigned long start = 0, end = 0, kib = 0;
  bool within = false, told = false;
  std::ifstream smaps("/proc/self/smaps");
  for (std::string line; !told && std::getline(smaps, line);) {
    if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) within = start == address && end == start + kPageSize;
    told = within && std::sscanf(line.c_str(), "Rss: %lu", &kib) == 1;
  }
  EXPECT_TRUE(told) << "no mapping of its own is at " << area;
  ::munmap(area, kPageSize);
  return kib == 0;
}

}  // namespace migrate
