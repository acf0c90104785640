// What the images say about files, read once and checked: ids are unique, types match, numbers are in range.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "core/files/open_file.h"
#include "images/fdinfo.pb.h"

namespace migrate {

/// The kernel's upper bound of RLIMIT_NOFILE (fs.nr_open) as it comes; a table of more is no table.
inline constexpr uint32_t kMaxFd = 1 << 20;

/// files.img by id. Throws Corrupt for ids that stand twice and entries without the part of their type.
std::map<uint32_t, img::file_entry> read_file_entries(const ImageSet& images);
/// fdinfo-N.img, ascending by descriptor number. Throws Corrupt if it is absent or a number stands twice.
std::vector<img::fdinfo_entry> read_table(const ImageSet& images, uint32_t files_id);
/// The ids N of all fdinfo-N.img, ascending.
std::vector<uint32_t> table_ids(const ImageSet& images);

/// Open flags and owner of an entry; flags 0 and nullptr where the kind has none.
uint32_t flags_of(const img::file_entry& entry);
const img::fown_entry* owner_of(const img::file_entry& entry);

}  // namespace migrate
