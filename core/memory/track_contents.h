// Memory in rounds by content: what is written to it cannot be told from page tables, so that nothing but the contents
// can be believed. Shared objects (writes through descriptors, other mappings, children that have ended, hole punching)
// and private copies of file pages (MADV_DONTNEED reverts them unseen).
#pragma once

#include <xxhash.h>

#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "core/memory/page_io.h"
#include "core/memory/track_rules.h"
#include "core/memory/track_set.h"
#include "core/memory/tree_layout.h"

namespace migrate {

class ContentTracker {
 public:
  /// A memory of which `pages` exist, to be read from `fd` at their address. The task may be running.
  struct Found {
    MemoryId memory;
    PageSet pages;
    Fd fd;
    /// Absent pages read as zeros at the receiver, so that zeros may be left out where it has nothing.
    bool zero_ok = false;
  };
  /// What a round adds to what is sent.
  struct Part {
    std::vector<PageSource> sources;  ///< snapshots: what is sent is what was compared
    std::vector<PageDiscard> discards;
    uint64_t pages = 0;           ///< in sources
    uint64_t compared_pages = 0;  ///< all that were read
    uint64_t left_pages = 0;      ///< changed, but there is no memory to copy them: for the next round
  };

  explicit ContentTracker(const TrackRules& rules = {});
  /// The last round's result was sent: begins the next one. The receiver drops what is not added to it.
  void begin();
  /// Pages whose contents are not those sent last; copied, so that is what the receiver gets.
  void add(const Found& found, Part& part);
  /// What the round has found will not be sent.
  void put_back();
  void forget(MemoryId memory) { memories_.erase(memory); }

  /// With the tree stopped: reduces all pages of a memory (the runs, all with one zero_ok) to what the receiver has
  /// not. Uses several threads. Throws Error if it cannot be read.
  void reduce(PageSource& all, std::vector<PageDiscard>& discards) const;
  /// What reduce() of all that was found last will take.
  std::chrono::microseconds last_compare_time() const;

 private:
  using Hash = XXH128_hash_t;
  static constexpr uint64_t kChunkPages = 256;
  using Chunk = std::array<Hash, kChunkPages>;
  struct Memory {
    std::map<uint64_t, std::unique_ptr<Chunk>> sent;  ///< hash of each page by page number; all zero: not known
    PageSet held, held_before, changed;
    bool absent = false;  ///< from the last round: the receiver drops it, unless that is put back
  };
  Hash hash(const std::byte* page) const;
  static Hash sent_hash(const Memory& memory, uint64_t page);
  static void set_sent(Memory& memory, uint64_t page, const Hash& hash);
  static void unknow(Memory& memory, const PageSet& pages);
  bool compare_chunk(Memory& memory, uint64_t address, std::span<const std::byte> data, Fd& copy, Part& part);
  PageSet changed_in(const Memory& memory, const PageSource& source, size_t first, size_t step) const;

  const TrackRules rules_;
  uint64_t seed_;
  uint64_t room_ = 0;  ///< bytes that snapshots of this round may still take
  struct Cost {
    std::chrono::nanoseconds time{0};
    uint64_t pages = 0;
  };
  Cost cost_, clean_cost_;  ///< of the last round: all, and of pieces of which nothing was copied
  std::map<MemoryId, Memory> memories_;
};

}  // namespace migrate
