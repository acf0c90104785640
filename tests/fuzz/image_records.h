// Images as records (records.h): the kind says which image, the id its number, the payload is one entry of it; with the
// kind's top bit, bytes behind an entry. scripts in this folder make such inputs from image folders.
#pragma once

#include "core/image/image_set.h"
#include "records.h"

namespace migrate::fuzz {

ImageSet images_from(const std::vector<Record>& records);

}  // namespace migrate::fuzz
