// Sets of pages of one address space, as the tracker keeps them: few long runs, so plain sorted vectors.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/types.h"

namespace migrate {

/// Ascending, disjoint, non-touching runs of page-aligned addresses. Each operation is linear in the number of runs.
class PageSet {
 public:
  struct Range {
    uint64_t start = 0, end = 0;
    bool operator==(const Range&) const = default;
  };

  PageSet() = default;
  PageSet(uint64_t start, uint64_t end) { append(start, end); }
  /// Cheap if ascending; anywhere else it costs as much as `|`.
  void append(uint64_t start, uint64_t end);
  const std::vector<Range>& ranges() const { return ranges_; }
  bool empty() const { return ranges_.empty(); }
  uint64_t pages() const;
  bool contains(uint64_t address) const { return contains(address, address + 1); }
  /// All of them.
  bool contains(uint64_t start, uint64_t end) const;
  void clear() { ranges_.clear(); }
  bool operator==(const PageSet&) const = default;

  friend PageSet operator|(const PageSet& a, const PageSet& b);
  friend PageSet operator-(const PageSet& a, const PageSet& b);
  friend PageSet operator&(const PageSet& a, const PageSet& b);

 private:
  std::vector<Range> ranges_;
};

}  // namespace migrate
