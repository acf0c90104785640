// Extended attributes (xattr(7)) of deleted files, which nothing but their images can keep.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/image/image_set.h"

namespace migrate {

/// What images say of a ghost beside CRIU's: an image of our own (proto/ext/files.proto, GhostAttribute).
inline constexpr char kGhostAttributesImage[] = "migrate-ghosts.img";
inline constexpr uint32_t kGhostAttributesMagic = 0x4d494741;

/// By name.
using ExtendedAttributes = std::map<std::string, std::string>;

/// Those of the file at `path` (a magic link) that its owner may set: user.* and access control lists. What the system
/// gives to each file (security labels) is left to the system. Throws Refusal, naming `who`, for what root alone sets.
ExtendedAttributes read_extended_attributes(const std::string& path, const std::string& who);

void write_extended_attributes(const ExtendedAttributes& attributes, uint32_t ghost_id, ImageSet& images);

/// Of all ghosts, by id. Throws Corrupt for names that read_extended_attributes() does not give.
std::map<uint32_t, ExtendedAttributes> read_ghost_attributes(const ImageSet& images);

/// Sets them, by the rights that the caller has now. `what` names the file.
void set_extended_attributes(const std::string& path, const ExtendedAttributes& attributes, const std::string& what);

}  // namespace migrate
