// Pages in image files: pages-N.img, raw pages one after the other, and pagemap-*.img, which says where they belong.
#pragma once

#include <span>

#include "core/image/image_set.h"
#include "core/memory/page_folder.h"
#include "core/memory/page_io.h"
#include "core/memory/page_runs.h"

namespace migrate {

/// Writes the pages of `memories` into `dirfd`, one pages-N.img each (N from 1), and their pagemaps into `images`.
/// Pages of zeros are left out where the absent page reads the same (PageRun::zero_ok). Returns the pages written.
/// Throws Error, naming the memory, if it cannot be read.
uint64_t write_pages(std::span<PageSource> memories, ImageSet& images, int dirfd);

struct WrittenPages {
  uint64_t written = 0, in_parent = 0;
  PagesByMemory stored;  ///< what the folder and its parents have now
};
/// Writes the pages of `memories` into `store`, and notes those of `in_parent` (disjoint from the runs of `memories`,
/// of which each memory must be one) as unchanged. Throws Error, naming the memory, if it cannot be read; Refusal if
/// `store` has no parent for them.
WrittenPages write_pages(std::span<const PageSource> memories, const PagesByMemory& in_parent, PageStore& store);

/// "pagemap-42.img", "pagemap-shmem-7.img"
std::string pagemap_name(MemoryId memory);

/// Whether all of `bytes` are zero.
bool all_zero(std::span<const std::byte> bytes);

}  // namespace migrate
