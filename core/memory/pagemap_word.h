// What a word of /proc/PID/pagemap says of a page: Documentation/admin-guide/mm/pagemap.rst.
#pragma once

#include <cstdint>

namespace migrate::pagemap_word {

/// The zero page is kPresent, too, and looks like any other but for kExclusive.
constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62, kFile = uint64_t{1} << 61,
                   kGuard = uint64_t{1} << 58, kExclusive = uint64_t{1} << 56, kSoftDirty = uint64_t{1} << 55;
constexpr uint64_t kFrame = kSoftDirty - 1;  ///< the bits that name the frame

}  // namespace migrate::pagemap_word
