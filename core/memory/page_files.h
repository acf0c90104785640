// Pages in image files: pages-N.img, raw pages one after the other, and pagemap-*.img, which says where they belong.
#pragma once

#include <span>

#include "core/image/image_set.h"
#include "core/memory/page_io.h"

namespace migrate {

/// Writes the pages of `memories` into `dirfd`, one pages-N.img each (N from 1), and their pagemaps into `images`.
/// Pages of zeros are left out where the absent page reads the same (PageRun::zero_ok). Returns the pages written.
/// Throws Error, naming the memory, if it cannot be read.
uint64_t write_pages(std::span<PageSource> memories, ImageSet& images, int dirfd);

/// "pagemap-42.img", "pagemap-shmem-7.img"
std::string pagemap_name(MemoryId memory);

/// Whether all of `bytes` are zero.
bool all_zero(std::span<const std::byte> bytes);

}  // namespace migrate
