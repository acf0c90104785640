// A fast hash of a file's content, to tell two builds of a library apart. Not against an adversary.
#pragma once

#include <cstdint>
#include <string>

namespace migrate {

/// The first 256 MiB. 0 if the file cannot be read.
uint64_t content_hash(const std::string& path);
uint64_t content_hash(int fd);

}  // namespace migrate
