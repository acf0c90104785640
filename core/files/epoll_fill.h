// Interest lists of epolls in a shell: under the numbers that the program added its files by.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "core/base/fd.h"
#include "core/image/image_set.h"
#include "images/fdinfo.pb.h"

namespace migrate {

/// The highest number that an epoll of the table names; -1: none.
int highest_watched(const std::vector<img::fdinfo_entry>& table, const std::map<uint32_t, img::file_entry>& entries);

/// Fills the lists that this table fills: all of it must be installed. `fetch`: a duplicate of a description.
void fill_epolls(const ImageSet& images, uint32_t files_id, const std::vector<img::fdinfo_entry>& table,
                 const std::map<uint32_t, img::file_entry>& entries, const std::function<Fd(uint32_t file_id)>& fetch);

}  // namespace migrate
