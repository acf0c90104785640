// What the address spaces of a tree make this process take, and when that is enough.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_io.h"

namespace migrate {

/// Memory that a program can make its daemon take: by forks, each of which has a set of missing pages of its own, and
/// by what scatters these. It is the daemon's and not the program's, so no limit of the program holds for it. Forks
/// wait when it is `most`. Any thread may call anything.
class SpaceRoom {
 public:
  /// Enough for some thousand forks of a program that misses 64 MiB.
  static constexpr uint64_t kMost = 256 << 20;
  /// Each space has a mapping of its log; as vm.max_map_count comes there may be 65,530.
  static constexpr uint64_t kMostSpaces = 48 << 10;
  /// A fork that waits, for this or for a descriptor, is tried again after it: not so often that nobody else gets a
  /// descriptor.
  static constexpr std::chrono::milliseconds kTryAgain{5};

  /// `most`: from now on.
  void allow(uint64_t most) { most_ = most; }
  uint64_t used() const { return used_; }
  /// How many more spaces of `bytes` each find room; one at least while no fork lives of this memory that was made
  /// here. (Of each memory: a task that has shared memory, too, forks both, and is not done with one.)
  uint64_t fit(MemoryId memory, uint64_t bytes) const;
  /// By now also what was not forked must stop to grow.
  bool overfull() const { return used_ / 2 > most_; }
  /// Somebody was made to wait, for room or a descriptor, or once more.
  void refused() { ++refusals_; }
  uint64_t refusals() const { return refusals_; }

  /// Calls `what` while this process gets no descriptors: read(2) of a userfaultfd gives everything but forks, which
  /// are EMFILE and go on waiting. Another thread that opens something meanwhile finds the table full, too; one that
  /// only waits for descriptors does not notice. (One that closes something lets a fork come.)
  void without_descriptors(const std::function<void()>& what);

 private:
  friend class SpaceShare;
  bool has_forks(MemoryId memory) const;
  void count_fork(MemoryId memory, bool more);

  std::atomic<uint64_t> used_{0}, spaces_{0}, most_{kMost}, refusals_{0};
  mutable std::mutex mutex_;
  std::map<MemoryId, uint64_t> forks_;  ///< that live, of each
  std::vector<Fd> low_;                 ///< so that the limit, which is the lowest free number, is never low
};

/// One space's part.
class SpaceShare {
 public:
  /// Beside what is missing: its page of the record, the least log, its objects here and in the kernel.
  static constexpr uint64_t kLeast = 24 << 10;

  SpaceShare(SpaceRoom& room, MemoryId memory, bool forked) : room_(room), memory_(memory), forked_(forked) {
    if (forked_) room_.count_fork(memory_, true);
    ++room_.spaces_;
  }
  SpaceShare(const SpaceShare&) = delete;
  SpaceShare& operator=(const SpaceShare&) = delete;
  ~SpaceShare() {
    is(0);
    --room_.spaces_;
    if (forked_) room_.count_fork(memory_, false);
  }

  void is(uint64_t bytes);
  uint64_t bytes() const { return bytes_; }
  /// So much more than at first as only moving pages about makes it.
  bool grown() const { return bytes_ > 2 * first_ + (1 << 20); }

 private:
  SpaceRoom& room_;
  const MemoryId memory_;
  const bool forked_;
  uint64_t bytes_ = 0, first_ = 0;
};

}  // namespace migrate
