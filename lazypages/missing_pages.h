// Which pages of one address space are missing, where they are missed now and where the source has them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/base/types.h"
#include "core/memory/page_io.h"
#include "lazypages/intervals.h"
#include "lazypages/missing_spans.h"

namespace migrate {

/// A change of MissingPages, by which it can be recorded: the same changes in the same order come to the same.
struct PageChange {
  enum class What : uint8_t { settled, unmapped, moved, moves_settled, grown, registered, gone };
  static constexpr unsigned kWhats = 7;
  What what;
  uint64_t start = 0, end = 0;
  uint64_t to = 0;  ///< where it is moved
};

/// What events and copies say of one address space, kept as spans: costs grow with these, not with the pages, but for a
/// bit of each page where holes are.
/// A page of the registered ranges that is not missing is present or reads as zeros: only the kernel knows which, and
/// it does not matter, since both are answered alike. A source page is missing at one address at most.
///
/// A thread in mremap(2) tells its events one after the other and waits for each, long after others may use the place
/// that it left: their events can be read first.
/// - What a move leaves is told by an UNMAP of just that range: what came down there since stays.
/// - A move that comes down on memory that is still registered, and that no move has left, has overtaken an older event
///   of that place; what is missing there is set aside until that comes, or until the kernel says that none is
///   outstanding.
/// - Mappings grow without an event. So a move may have overtaken older events also where nothing was known to be
///   registered: an UNMAP that follows it there is in doubt until none is outstanding, and then the kernel is asked.
class MissingPages {
 public:
  MissingPages() = default;
  /// Throws Corrupt unless `ranges` and `missing` ascend, are of whole pages below kUserSpace, and `missing` lies
  /// within `ranges`.
  MissingPages(std::span<const RemoteRange> ranges, std::span<const PageRun> missing);
  /// All of `ranges` is missing; `sources` are as many. Throws Corrupt as above, and if sources overlap.
  MissingPages(std::span<const RemoteRange> ranges, std::span<const uint64_t> sources);
  /// What save() wrote.
  static MissingPages saved(std::span<const uint64_t> words);
  uint64_t words() const;  ///< that save() writes
  void save(std::span<uint64_t> words) const;

  /// One of the changes below.
  void apply(const PageChange& change);

  /// The pages have come, or are of zeros from now on (discarded): they are not fetched any more.
  void settle(RemoteRange range);
  /// The range is no longer mapped.
  void unmapped(RemoteRange range);
  /// The pages of `from` are at `to` now, and `from` is of zeros (its UNMAP follows, unless MREMAP_DONTUNMAP was
  /// given).
  void moved(RemoteAddr from, RemoteAddr to, uint64_t bytes);
  /// No event is outstanding, and nothing is in doubt: nothing is set aside any more.
  void settle_moves();
  /// Something was moved, and it is not known that no event is outstanding that is older.
  bool unsettled() const {
    return !overtaken_.empty() || !landed_.empty() || !beside_.empty() || !doubtful_.empty() || !departures_.empty();
  }
  /// Events of a place are outstanding for sure: what is missing may be elsewhere.
  bool overtook() const { return !overtaken_.empty(); }
  struct Doubt {
    RemoteRange range;
    bool unmapped;  ///< perhaps; else a move has left it, and it may have stayed
  };
  /// When no event is outstanding: the first range of which the kernel is to be asked whether it is registered;
  /// registered() or gone() says so, of all of it or of its beginning. What was not unmapped is registered as a whole.
  std::optional<Doubt> doubt() const;
  void registered(RemoteRange range);
  void gone(RemoteRange range);
  /// Those of a fork, which gets none of the events that are outstanding.
  MissingPages forked() const;
  /// A registered mapping grew over these pages: they are of zeros.
  void grown(RemoteRange range);

  /// The source address of a page that is missing at `address`.
  std::optional<uint64_t> source_of(uint64_t address) const { return spans_.source_of(address); }
  bool registered(uint64_t address) const;
  /// Of this range of the source's, pages are missing at an address that is not known before older events come.
  bool aside(uint64_t source, uint64_t bytes) const;
  /// The first missing run of the source's range [source, source + bytes), cut to it; behind it others may be missing.
  std::optional<MissingRun> first_of_source(uint64_t source, uint64_t bytes) const {
    return spans_.first_of_source(source, bytes);
  }
  /// The first missing run at `address` or above; behind it others may be missing.
  std::optional<MissingRun> next(uint64_t address) const { return spans_.next(address); }
  /// The longest range around nothing missing that starts at `address`, within one registered range; at most `limit`
  /// bytes. 0: `address` is missing, or not registered.
  uint64_t zeros_from(uint64_t address, uint64_t limit) const;

  std::vector<MissingRun> runs() const { return spans_.runs(); }    ///< ascending by address
  std::vector<RemoteRange> ranges() const;                          ///< registered, ascending
  uint64_t pages() const { return spans_.pages() + aside_pages_; }  ///< missing
  bool empty() const { return pages() == 0; }

  /// What this takes, in memory and recorded, or comes to take when holes are made into it: an estimate from above,
  /// unless a program moves pages about.
  uint64_t most_bytes() const;

 private:
  static constexpr uint64_t kJoinAt = 64;

  /// What a move left, until its UNMAP comes, or never will (MREMAP_DONTUNMAP).
  struct Departure {
    uint64_t start = 0, end = 0;
    Intervals retaken;  ///< others came down there since
    bool meets(uint64_t from, uint64_t to) const { return from < end && start < to; }
    std::array<Intervals*, 1> sets() { return {&retaken}; }
    std::array<const Intervals*, 1> sets() const { return {&retaken}; }
  };
  /// An UNMAP that may be older than the moves that came down within its range.
  struct Doubtful {
    uint64_t start = 0, end = 0;
    Intervals unanswered, registered;  ///< of what came down: as the kernel has said so far
    bool meets(uint64_t from, uint64_t to) const { return from < end && start < to; }
    void cut_out(uint64_t from, uint64_t to) {
      for (Intervals* set : sets()) cut(*set, from, to);
    }
    std::array<Intervals*, 2> sets() { return {&unanswered, &registered}; }
    std::array<const Intervals*, 2> sets() const { return {&unanswered, &registered}; }
  };

  std::array<Intervals*, 4> sets() { return {&ranges_, &overtaken_, &landed_, &beside_}; }
  std::array<const Intervals*, 4> sets() const { return {&ranges_, &overtaken_, &landed_, &beside_}; }
  void add_ranges(std::span<const RemoteRange> ranges);
  void land(uint64_t start, uint64_t end);
  bool leave(uint64_t start, uint64_t end);
  void drop(uint64_t start, uint64_t end);
  void drop_doubts(uint64_t start, uint64_t end, bool landing);
  void departed_to(uint64_t end);
  std::vector<MissingSpan> take_aside(uint64_t start, uint64_t end);
  void join_spans();

  MissingSpans spans_;
  uint64_t join_at_ = kJoinAt;  ///< spans
  Intervals ranges_;            ///< registered
  Intervals overtaken_;         ///< where a move came down on memory that was still registered: older events will come
  Intervals landed_;            ///< where a move came down on memory that was not known to be registered
  Intervals beside_;            ///< so, of moves that overtook something with another part
  std::vector<Departure> departures_;
  std::vector<Doubtful> doubtful_;
  std::vector<MissingSpan> aside_;  ///< missing pages that were at overtaken places before
  uint64_t aside_pages_ = 0;
};

}  // namespace migrate
