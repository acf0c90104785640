// What the background fill fetches next.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "core/memory/page_io.h"
#include "lazypages/intervals.h"

namespace migrate {

/// Missing pages and how soon they will be needed: higher ranks come first (pages that were written last).
struct RankedRun {
  MemoryId memory;
  PageRun run;
  uint64_t rank = 0;
};

/// Pages to fetch at once, one after the other.
struct FillPiece {
  MemoryId memory;
  uint64_t address = 0;  ///< at the source
  uint64_t bytes = 0;
  auto operator<=>(const FillPiece&) const = default;
};

/// Around the latest faults first, further the longer they go on beside each other, whether upwards or downwards; then
/// by rank, runs of one rank as they were given. No page is given twice. Not thread-safe.
class FillOrder {
 public:
  static constexpr uint64_t kMostBytes = 64 << 10;

  FillOrder() = default;
  /// Runs of one memory are disjoint.
  explicit FillOrder(std::vector<RankedRun> runs);

  /// A fault asked for this page: it is left out, its neighbours come next.
  void faulted(MemoryId memory, uint64_t address);
  /// Pages that have come by another way, or are not missed any more.
  void leave_out(MemoryId memory, uint64_t address, uint64_t bytes);
  /// Pages that were given and will not come (a lost connection): they are given again.
  void put_back(MemoryId memory, uint64_t address, uint64_t bytes);

  /// nullopt: all was given. At most `most` bytes.
  std::optional<FillPiece> next(uint64_t most = kMostBytes);
  uint64_t pages_left() const { return pages_left_; }

 private:
  struct Place {
    MemoryId memory;
    uint64_t at = 0;     ///< the last fault
    uint64_t reach = 0;  ///< bytes on either side
  };
  static constexpr size_t kPlaces = 16;
  static constexpr uint64_t kReach = 32 << 10, kMostReach = 1 << 20;

  std::optional<FillPiece> beside(const Place& place, uint64_t most);
  std::optional<FillPiece> by_rank(uint64_t most);
  FillPiece give(MemoryId memory, uint64_t address, uint64_t bytes);

  std::vector<RankedRun> runs_;  ///< in their order
  size_t first_ = 0;             ///< of these, the first with anything left
  std::map<MemoryId, Intervals> left_;
  std::deque<Place> places_;  ///< latest first
  uint64_t pages_left_ = 0;
};

}  // namespace migrate
