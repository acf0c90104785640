// Which pages of a task's mappings or of a shared memory object exist: only those are carried.
#pragma once

#include <span>
#include <vector>

#include "core/base/procfs.h"
#include "core/memory/page_io.h"
#include "core/memory/vma.h"

namespace migrate {

/// Pages of private mappings that hold data of the task's own: present or swapped anonymous pages, private copies of
/// file pages; not the shared zero page, not pages of the file, not guard regions. `pagemap` is the open
/// /proc/PID/pagemap; the result is clipped to `wanted` (ascending, disjoint). Uses PAGEMAP_SCAN (6.7), else reads
/// pagemap itself. `anonymous`: no mapping from the first to the last wanted one is of a file, so that pages need not
/// be asked whose they are (which reads the kernel's record of each of them, a cache miss a page). `guards`: the guard
/// regions met are appended to it, as scan_guard_pages() tells them, which saves that walk.
std::vector<PageRun> scan_private_pages(int pagemap, std::span<const RemoteRange> wanted, bool anonymous = false,
                                        std::vector<PageRun>* guards = nullptr);

/// The same through pagemap's own words, for kernels without PAGEMAP_SCAN (and to test against).
std::vector<PageRun> scan_private_pages_by_words(int pagemap, std::span<const RemoteRange> wanted);

/// Guard regions (MADV_GUARD_INSTALL, 6.13) within `wanted`; empty where the kernel cannot tell (before 6.16).
std::vector<PageRun> scan_guard_pages(int pagemap, std::span<const RemoteRange> wanted);

/// In bytes, of a memory file: a memfd, or shared anonymous memory.
uint64_t object_size(int fd);
/// Data pages of a shared object (memfd, shared anonymous memory) by SEEK_DATA and SEEK_HOLE.
std::vector<PageRun> scan_object_pages(int fd);

}  // namespace migrate
