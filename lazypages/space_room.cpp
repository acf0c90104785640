#include "lazypages/space_room.h"

#include <sys/eventfd.h>
#include <sys/resource.h>

#include <algorithm>
#include <mutex>

namespace migrate {
namespace {

/// poll(2) of more descriptors than the limit allows is EINVAL, whatever their numbers: no feed waits for so many.
constexpr int kLeastLimit = 16;

/// No descriptor is free below this number. -1: none at all.
int full_below(std::vector<Fd>& kept) {
  for (;;) {
    Fd lowest(::eventfd(0, EFD_CLOEXEC));
    if (!lowest || lowest.get() >= kLeastLimit) return lowest.get();
    kept.push_back(std::move(lowest));
  }
}

class NoDescriptors {
 public:
  /// `below`: all these are taken.
  explicit NoDescriptors(int below) : lowered_(below >= 0 && ::getrlimit(RLIMIT_NOFILE, &before_) == 0) {
    const rlimit none{std::min<rlim_t>(static_cast<rlim_t>(below), before_.rlim_max), before_.rlim_max};
    if (lowered_) ::setrlimit(RLIMIT_NOFILE, &none);
  }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;
  ~NoDescriptors() {
    if (lowered_) ::setrlimit(RLIMIT_NOFILE, &before_);
  }

 private:
  rlimit before_{};
  bool lowered_;
};

}  // namespace

uint64_t SpaceRoom::fit(MemoryId memory, uint64_t bytes) const {
  const uint64_t used = used_, most = most_, spaces = spaces_;
  if (spaces >= kMostSpaces) return 0;
  uint64_t fit = used >= most ? 0 : (most - used) / bytes;
  if (fit == 0 && !has_forks(memory)) fit = 1;
  return std::min(fit, kMostSpaces - spaces);
}

bool SpaceRoom::has_forks(MemoryId memory) const {
  const std::lock_guard lock(mutex_);
  return forks_.contains(memory);
}

void SpaceRoom::count_fork(MemoryId memory, bool more) {
  const std::lock_guard lock(mutex_);
  const auto of = forks_.try_emplace(memory).first;
  if (more) ++of->second;
  if (!more && --of->second == 0) forks_.erase(of);
}

void SpaceRoom::without_descriptors(const std::function<void()>& what) {
  static std::mutex limit;  // there is one a process
  const std::lock_guard lock(limit);
  const NoDescriptors none(full_below(low_));
  what();
}

void SpaceShare::is(uint64_t bytes) {
  if (first_ == 0) first_ = bytes;
  room_.used_ += bytes - bytes_;  // modulo 2^64: less, too
  bytes_ = bytes;
}

}  // namespace migrate
