// Images that say something else than what was dumped.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/image/image_set.h"

namespace migrate {

/// Replaces the only entry of an image.
template <class Entry>
void change(ImageSet& images, const std::string& name, uint32_t type, const std::function<void(Entry&)>& how) {
  Entry entry;
  images.need(name, type, entry);
  how(entry);
  ImageSet fresh;
  fresh.put(name, type, entry);
  images.adopt(name, fresh.images().at(name));
}

}  // namespace migrate
