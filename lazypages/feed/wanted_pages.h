// Pages that somebody waits for, from the fault until they are here, over any number of connections.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_io.h"
#include "lazypages/feed/latencies.h"

namespace migrate {

/// What came, and how long was waited for it.
struct WantedStatistics {
  uint64_t wanted = 0;      ///< pages asked for, each once until it is here
  uint64_t by_request = 0;  ///< of these, came as an answer ...
  uint64_t by_fill = 0;     ///< ... or with the fill, before the answer or before the request had gone out
  uint64_t waiting = 0;     ///< now
  std::chrono::microseconds longest_wait{0};  ///< of those that wait now
  Latencies latencies;                        ///< from want() until the page was put where it is missing
};

/// Outlives connections: what is asked for while there is none is asked of the next. Any thread may call anything.
class WantedPages {
 public:
  using Clock = std::chrono::steady_clock;
  WantedPages();

  /// For LazyMemories::Wanted: takes some microseconds, whatever the network does. A page that was wanted before and is
  /// not here is not asked for twice. After a takeover: once for each of LazyMemories::outstanding().
  void want(MemoryId memory, uint64_t address);

  WantedStatistics statistics() const;

  // What follows is for PageFetcher.

  using Page = std::pair<MemoryId, uint64_t>;
  /// Readable when take() has something.
  int fd() const { return event_.get(); }
  /// Makes fd() readable.
  void wake() noexcept;
  /// What to ask for now, in the order in which it was wanted.
  std::vector<Page> take();
  /// A new connection: take() gives all that is not here again.
  void ask_again();
  /// Whether all these pages were given by take() and have not been answered.
  bool are_asked_for(MemoryId memory, uint64_t address, uint64_t pages) const;
  /// They were put where they are missing, by a write that began at `since`: what was wanted after that is asked for
  /// again.
  void answered(MemoryId memory, uint64_t address, uint64_t pages, Clock::time_point since);
  void filled(MemoryId memory, uint64_t address, uint64_t pages, Clock::time_point since);
  /// Whether any page of the memory was wanted, and has not come.
  bool wants(MemoryId memory) const;
  /// No page of the memory comes any more: none is asked for, now and later.
  void never(MemoryId memory);

 private:
  struct Wish {
    Clock::time_point since;
    Clock::time_point latest;  ///< when it was wanted last
    bool asked = false;        ///< an answer is to come
    bool here = false;         ///< nobody waits: the fill was faster
  };

  void came(Wish& wish, uint64_t& counter);

  Fd event_;
  mutable std::mutex mutex_;
  std::map<Page, Wish> wishes_;
  std::deque<Page> queue_;
  std::set<MemoryId> gone_;
  WantedStatistics statistics_;
};

}  // namespace migrate
