// Shared anonymous memory in rounds, by content: writes through other mappings, forked children that have ended, swap
// and hole punching leave no trace in the page tables of those that are left, so nothing but the contents can be
// believed.
#pragma once

#include <xxhash.h>

#include <map>
#include <vector>

#include "core/memory/page_io.h"
#include "core/memory/track_set.h"
#include "core/memory/tree_layout.h"

namespace migrate {

class ObjectTracker {
 public:
  /// A shared object, opened to read; `id` is its inode number on the kernel's internal tmpfs.
  struct Found {
    uint64_t id = 0;
    Fd fd;
  };
  struct Round {
    std::vector<TreeLayout::Object> layout;
    std::vector<PageSource> sources;  ///< snapshots: what is sent is what was compared
    std::vector<PageDiscard> discards;
    uint64_t pages = 0, compared_pages = 0;
  };

  ObjectTracker();
  /// The last round's result was sent: begins the next one. Until round() returns put_back() ends it again.
  void begin();
  /// Pages whose contents are not those sent last; copied, so that is what the receiver gets. Objects for whose copy
  /// there is not enough memory are left out, those not `found` are forgotten.
  Round round(std::vector<Found> found);
  /// What the round has found will not be sent.
  void put_back();
  void forget(uint64_t id) { objects_.erase(id); }
  /// Whether it took part in the last round.
  bool knows(uint64_t id) const {
    const auto found = objects_.find(id);
    return found != objects_.end() && !found->second.absent;
  }
  /// With the tree stopped: reduces all that the object has to what the receiver has not. Uses several threads.
  void reduce(PageSource& all, std::vector<PageDiscard>& discards) const;

 private:
  using Hash = XXH128_hash_t;
  struct Object {
    std::vector<Hash> sent;  ///< of each page; all zero: not known
    PageSet held, held_before, changed;
    bool absent = false;  ///< from the last round: the receiver drops it, unless that is put back
  };
  Hash hash(const std::byte* page) const;
  bool same(const Object& object, uint64_t page, const Hash& now) const;
  void take(const Found& found, uint64_t bytes, Object& object, Round& out) const;
  PageSet changed_in(const Object& object, const PageSource& source, size_t first, size_t step) const;

  uint64_t seed_;
  std::map<uint64_t, Object> objects_;
};

}  // namespace migrate
