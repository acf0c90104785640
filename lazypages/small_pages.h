// Shared memory in small pages, whatever the kernel is set to.
#pragma once

#include <cstdint>
#include <string>

namespace migrate {

/// The kernel, as it is set now, may make huge pages of what is allocated in shared anonymous memory.
bool makes_huge_pages(const std::string& settings = "/sys/kernel/mm/transparent_hugepage");

/// The same, asked of the file itself: a page of a hole of it, at `offset`, is allocated, perhaps with others around.
bool makes_huge_page_at(int file, uint64_t offset);

}  // namespace migrate
