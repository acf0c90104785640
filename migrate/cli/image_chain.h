// Image folders that refer to each other: run ids, by which a folder is known also after it was moved, and the link
// to the previous one.
#pragma once

#include <string>

#include "core/image/image_set.h"

namespace migrate::cli {

/// Puts a new random id into the inventory of `images` (dump_criu_run_id, as CRIU's own) and returns it.
std::string stamp_run_id(ImageSet& images);
/// Of the folder `path`, relative to `dirfd`; empty if it has none. Throws Refusal if it cannot be opened.
std::string run_id_of(int dirfd, const std::string& path);

}  // namespace migrate::cli
