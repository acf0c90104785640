#include "lazypages/space_room.h"

#include <sys/resource.h>

#include <algorithm>

namespace migrate {
namespace {

class NoDescriptors {
 public:
  NoDescriptors() : known_(::getrlimit(RLIMIT_NOFILE, &before_) == 0) {
    const rlimit none{0, before_.rlim_max};
    if (known_) ::setrlimit(RLIMIT_NOFILE, &none);
  }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;
  ~NoDescriptors() {
    if (known_) ::setrlimit(RLIMIT_NOFILE, &before_);
  }

 private:
  rlimit before_{};
  bool known_;
};

}  // namespace

uint64_t SpaceRoom::fit(uint64_t bytes) const {
  const uint64_t used = used_, most = most_, spaces = spaces_;
  if (spaces >= kMostSpaces) return 0;
  const uint64_t fit = used >= most ? 0 : (most - used) / bytes;
  return std::min(std::max<uint64_t>(fit, forks_ == 0 ? 1 : 0), kMostSpaces - spaces);
}

void SpaceRoom::without_descriptors(const std::function<void()>& what) {
  const std::lock_guard lock(mutex_);
  const NoDescriptors none;
  what();
}

void SpaceShare::is(uint64_t bytes) {
  if (first_ == 0) first_ = bytes;
  room_.used_ += bytes - bytes_;  // modulo 2^64: less, too
  bytes_ = bytes;
}

}  // namespace migrate
