// Shared memory in small pages, whatever the kernel is set to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/memory/page_runs.h"

namespace migrate {

/// The kernel, as it is set now, may make huge pages of what is allocated in shared anonymous memory.
bool makes_huge_pages(const std::string& settings = "/sys/kernel/mm/transparent_hugepage");

/// The same, asked of the file itself: a page of a hole of it, at `offset`, is allocated, perhaps with others around.
bool makes_huge_page_at(int file, uint64_t offset);

/// Makes a hole. A part of a huge page becomes one when that is split, which is not possible while somebody, like a
/// thread of the kernel that looks for memory to free, uses it: tried until a deadline. Throws Error.
void make_hole(int file, uint64_t offset, uint64_t bytes);

/// Allocates what is not; of what size the pages are is the kernel's choice.
void allocate_pages(int file, uint64_t offset, uint64_t bytes);

/// Pages of a file, by the blocks that a huge page could have.
struct BlockPages {
  std::vector<uint64_t> first;  ///< of each block, ascending
  PageSet rest;                 ///< all others
};
BlockPages split_by_blocks(const PageSet& pages);

/// Makes holes of `pages` and allocates them in small pages, which are counted in the cgroup of the caller; but not the
/// first of each block: as long as that is a hole, nobody makes a huge page of a block in memory that is
/// registered for missing pages. Where the kernel would make huge pages all stay holes.
void allocate_all_but_first(int file, const PageSet& pages);

/// How many pages are allocated there, those without contents as well, which SEEK_DATA does not know (cachestat(2)).
/// None: this kernel (before Linux 6.5) does not tell.
std::optional<uint64_t> allocated_pages(int file, uint64_t offset, uint64_t bytes);

/// Pages are allocated, as far as one can tell (Linux 6.5 and later).
bool are_allocated(int file, uint64_t offset, uint64_t bytes);

}  // namespace migrate
