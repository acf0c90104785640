#include "migrate/session/wire/content_hash.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/base/fd.h"

namespace migrate {

uint64_t content_hash(int fd) {
  constexpr uint64_t kLimit = uint64_t{256} << 20;
  std::vector<std::byte> chunk(1 << 20);
  uint64_t hash = 0xcbf29ce484222325;
  for (uint64_t at = 0; at < kLimit;) {
    const size_t n = pread_full(fd, chunk, at, "a mapped file");
    std::fill(chunk.begin() + static_cast<ptrdiff_t>(n), chunk.end(), std::byte{0});
    for (size_t i = 0; i < n; i += 8) {
      uint64_t word = 0;
      std::memcpy(&word, chunk.data() + i, 8);
      hash = (hash ^ word) * 0x100000001b3;
      hash ^= hash >> 29;
    }
    at += n;
    if (n < chunk.size()) break;
  }
  return hash == 0 ? 1 : hash;
}

uint64_t content_hash(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return 0;
  try {
    return content_hash(fd.get());
  } catch (const Error&) {
    return 0;
  }
}

}  // namespace migrate
