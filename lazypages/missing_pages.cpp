#include "lazypages/missing_pages.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/error.h"
#include "lazypages/intervals.h"

namespace migrate {
namespace {

[[noreturn]] void refuse(const char* why) { throw Corrupt("lazy memory", why); }

template <class Put>
void save_set(const Intervals& set, Put& put) {
  put(set.size());
  for (const auto& [start, end] : set) {
    put(start);
    put(end);
  }
}

template <class Get>
void load_set(Intervals& set, Get& get) {
  for (uint64_t n = get(); n > 0; --n) {
    const uint64_t start = get();
    set.emplace(start, get());
  }
}

/// A list of departures or of what is in doubt.
template <class Told>
uint64_t words_of(const std::vector<Told>& list) {
  uint64_t n = 1;
  for (const Told& t : list) {
    n += 2;
    for (const Intervals* set : t.sets()) n += 1 + 2 * set->size();
  }
  return n;
}

template <class Told, class Put>
void save_list(const std::vector<Told>& list, Put& put) {
  put(list.size());
  for (const Told& t : list) {
    put(t.start);
    put(t.end);
    for (const Intervals* set : t.sets()) save_set(*set, put);
  }
}

template <class Told, class Get>
void load_list(std::vector<Told>& list, Get& get) {
  for (uint64_t n = get(); n > 0; --n) {
    Told t;
    t.start = get();
    t.end = get();
    for (Intervals* set : t.sets()) load_set(*set, get);
    list.push_back(std::move(t));
  }
}

template <class Told>
uint64_t intervals_of(const std::vector<Told>& list) {
  uint64_t n = list.size();
  for (const Told& t : list)
    for (const Intervals* set : t.sets()) n += set->size();
  return n;
}

}  // namespace

void MissingPages::add_ranges(std::span<const RemoteRange> ranges) {
  uint64_t last = 0;
  for (const RemoteRange& r : ranges) {
    const uint64_t start = r.start.get(), end = r.end.get();
    if (start % kPageSize != 0 || end % kPageSize != 0 || start < last || end <= start || end > kUserSpace)
      refuse("its ranges do not ascend, or are not of whole pages");
    add(ranges_, start, end);
    last = end;
  }
}

MissingPages::MissingPages(std::span<const RemoteRange> ranges, std::span<const uint64_t> sources) {
  add_ranges(ranges);
  if (sources.size() != ranges.size()) refuse("its ranges have no sources");
  Intervals seen;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const uint64_t bytes = ranges[i].bytes();
    if (sources[i] % kPageSize != 0 || sources[i] > kUserSpace - bytes ||
        !cut(seen, sources[i], sources[i] + bytes).empty())
      refuse("its sources overlap, or are not whole pages");
    add(seen, sources[i], sources[i] + bytes);
    spans_.insert(MissingRun{ranges[i].start.get(), sources[i], bytes});
  }
}

MissingPages::MissingPages(std::span<const RemoteRange> ranges, std::span<const PageRun> missing) {
  add_ranges(ranges);
  uint64_t last = 0;
  for (const PageRun& run : missing) {
    if (run.address % kPageSize != 0 || run.address < last || run.pages == 0 || run.pages > kUserSpace / kPageSize)
      refuse("its missing pages do not ascend, or are not whole pages");
    const uint64_t end = run.address + run.pages * kPageSize;
    const auto range = around(ranges_, run.address);
    if (range == ranges_.end() || end > range->second) refuse("pages are missing outside of its ranges");
    spans_.insert(MissingRun{run.address, run.address, end - run.address});
    last = end;
  }
  spans_.join();
}

uint64_t MissingPages::words() const {
  uint64_t n = 2 + spans_.words() + words_of(departures_) + words_of(doubtful_);
  for (const Intervals* set : sets()) n += 1 + 2 * set->size();
  for (const MissingSpan& span : aside_) n += span.words();
  return n;
}

void MissingPages::save(std::span<uint64_t> words) const {
  size_t at = 0;
  const auto put = [&](uint64_t word) { words[at++] = word; };
  spans_.save(put);
  put(join_at_);
  put(aside_.size());
  for (const MissingSpan& span : aside_) span.save(put);
  for (const Intervals* set : sets()) save_set(*set, put);
  save_list(departures_, put);
  save_list(doubtful_, put);
}

MissingPages MissingPages::saved(std::span<const uint64_t> words) {
  MissingPages m;
  size_t at = 0;
  const auto get = [&] {
    if (at == words.size()) refuse("what was recorded of it is cut short");
    return words[at++];
  };
  m.spans_.load(get);
  m.join_at_ = get();
  for (uint64_t n = get(); n > 0; --n) {
    MissingSpan span = MissingSpan::load(get);
    m.aside_pages_ += span.pages();
    m.aside_.push_back(std::move(span));
  }
  for (Intervals* set : m.sets()) load_set(*set, get);
  load_list(m.departures_, get);
  load_list(m.doubtful_, get);
  return m;
}

uint64_t MissingPages::most_bytes() const {
  // With what trees and malloc(3) add; what is recorded is at most three times as much as it is at first.
  constexpr uint64_t kSpan = 192 + 3 * 32, kRange = 64 + 3 * 16, kBits = 4 * sizeof(uint64_t);
  constexpr uint64_t kHoles = kBits * (MissingSpans::kMostWithHoles / kPageSize / 64);
  uint64_t words = spans_.bit_words(), all = pages() - spans_.pages_with_bits();  // `all`: where no hole is yet
  for (const MissingSpan& span : aside_) {
    words += span.bits.size();
    all -= span.bits.empty() ? 0 : span.pages();
  }
  const uint64_t with_holes = all * kPageSize / MissingSpans::kMostWithHoles + 1;
  uint64_t intervals = intervals_of(departures_) + intervals_of(doubtful_);
  for (const Intervals* set : sets()) intervals += set->size();
  return (spans_.spans() + aside_.size()) * kSpan + words * kBits + with_holes * (kSpan + kHoles) + intervals * kRange;
}

void MissingPages::apply(const PageChange& c) {
  const RemoteRange range{RemoteAddr(c.start), RemoteAddr(c.end)};
  switch (c.what) {
    case PageChange::What::settled:
      settle(range);
      return;
    case PageChange::What::unmapped:
      unmapped(range);
      return;
    case PageChange::What::moved:
      moved(range.start, RemoteAddr(c.to), range.bytes());
      return;
    case PageChange::What::moves_settled:
      settle_moves();
      return;
    case PageChange::What::grown:
      grown(range);
      return;
    case PageChange::What::registered:
      registered(range);
      return;
    case PageChange::What::gone:
      gone(range);
      return;
  }
}

/// A program that moves pages away and discards them there, again and again, leaves many spans that could be one.
void MissingPages::join_spans() {
  if (spans_.spans() < join_at_ || !aside_.empty()) return;
  spans_.join();
  join_at_ = std::max(kJoinAt, 2 * spans_.spans());
}

/// Takes from what was set aside.
std::vector<MissingSpan> MissingPages::take_aside(uint64_t start, uint64_t end) {
  std::vector<MissingSpan> taken, rest;
  for (const MissingSpan& span : aside_) {
    if (auto part = span.part(start, end)) {
      aside_pages_ -= part->pages();
      taken.push_back(std::move(*part));
    }
    if (auto before = span.part(span.address, std::min(start, span.end()))) rest.push_back(std::move(*before));
    if (auto after = span.part(std::max(end, span.address), span.end())) rest.push_back(std::move(*after));
  }
  aside_ = std::move(rest);
  return taken;
}

void MissingPages::settle(RemoteRange range) { spans_.drop(range.start.get(), range.end.get()); }

void MissingPages::drop(uint64_t start, uint64_t end) {
  spans_.drop(start, end);
  cut(ranges_, start, end);
}

/// The UNMAP of a move. False: no move left just this range.
bool MissingPages::leave(uint64_t start, uint64_t end) {
  const auto left =
      std::ranges::find_if(departures_, [&](const Departure& d) { return d.start == start && d.end == end; });
  if (left == departures_.end()) return false;
  for (const auto& [from, to] : outside(left->retaken, start, end)) drop(from, to);
  departures_.erase(left);
  return true;
}

/// `landing`: a move comes down here.
void MissingPages::drop_doubts(uint64_t start, uint64_t end, bool landing) {
  std::erase_if(doubtful_, [&](Doubtful& t) {
    if (!t.meets(start, end)) return false;
    Intervals both = t.unanswered;
    for (const auto& [from, to] : t.registered) add(both, from, to);
    const auto here = cut(both, start, end);
    // mremap(2) unmaps its target first, all of it, also where it grows, and tells. So what it comes down on, as far as
    // is known, is not mapped; or this was told by that.
    const bool all = landing && (!here.empty() || (t.start == start && end <= t.end));
    for (const auto& [from, to] : here) drop(from, to);
    if (all)
      for (const auto& [from, to] : both) drop(from, to);
    t.cut_out(start, end);
    return all || t.unanswered.empty();
  });
}

void MissingPages::unmapped(RemoteRange range) {
  const uint64_t start = range.start.get(), end = range.end.get();
  if (leave(start, end)) return;
  drop_doubts(start, end, false);
  // What a move brought there since is not what was unmapped.
  Intervals newer;
  for (const auto& [from, to] : cut(overtaken_, start, end)) {
    add(newer, from, to);
    take_aside(from, to);
  }
  for (Intervals* set : {&landed_, &beside_}) {
    for (const auto& [from, to] : cut(*set, start, end)) {
      doubtful_.push_back({start, end, {{from, to}}, {}});
      add(newer, from, to);
    }
  }
  for (const auto& [from, to] : outside(newer, start, end)) drop(from, to);
}

void MissingPages::moved(RemoteAddr from, RemoteAddr to, uint64_t bytes) {
  if (bytes == 0) return;  // mremap(2) with an old size of 0: a second mapping, nothing has moved
  const uint64_t from_end = from.get() + bytes;
  Departure departure{from.get(), from_end, {}};
  std::vector<MissingSpan> moving;
  const auto gather = [&](std::vector<MissingSpan> spans) { std::ranges::move(spans, std::back_inserter(moving)); };
  // From an overtaken place it is the older move: what came down there since stays.
  const auto overtaken = cut(overtaken_, from.get(), from_end), beside = cut(beside_, from.get(), from_end);
  cut(landed_, from.get(), from_end);
  for (const auto& [start, end] : overtaken) {
    gather(take_aside(start, end));
    add(departure.retaken, start, end);
  }
  for (const auto& [start, end] : beside) {
    if (!overtaken.empty()) add(departure.retaken, start, end);
  }
  for (const auto& [start, end] : outside(departure.retaken, from.get(), from_end)) gather(spans_.take(start, end));
  // It was registered, whether it was known or has grown.
  add(ranges_, from.get(), from_end);
  // And not unmapped before.
  std::erase_if(doubtful_, [&](Doubtful& t) {
    if (!t.meets(from.get(), from_end)) return false;
    t.cut_out(from.get(), from_end);
    return t.unanswered.empty();
  });
  // A move that left it before let it stay there (MREMAP_DONTUNMAP).
  std::erase_if(departures_, [&](const Departure& d) {
    if (!d.meets(from.get(), from_end)) return false;
    Intervals stayed = outside(d.retaken, d.start, d.end);
    return !cut(stayed, from.get(), from_end).empty();
  });
  departures_.push_back(std::move(departure));

  land(to.get(), to.get() + bytes);
  for (MissingSpan& span : moving) {
    span.address = to.get() + (span.address - from.get());
    spans_.insert(std::move(span));
  }
  join_spans();
}

/// A move comes down here.
void MissingPages::land(uint64_t start, uint64_t end) {
  drop_doubts(start, end, true);
  // Where a move has left already, only its UNMAP is older.
  Intervals departed;
  for (Departure& d : departures_) {
    if (!d.meets(start, end)) continue;
    const uint64_t from = std::max(start, d.start), to = std::min(end, d.end);
    for (const auto& [f, t] : outside(d.retaken, from, to)) add(departed, f, t);
    add(d.retaken, from, to);
  }
  Intervals unknown{{start, end}}, known;
  for (const auto& [from, to] : cut(ranges_, start, end)) {
    cut(unknown, from, to);
    add(known, from, to);
  }
  for (const auto& [from, to] : departed) {
    cut(unknown, from, to);
    cut(known, from, to);
    spans_.drop(from, to);
  }
  for (Intervals* set : {&landed_, &beside_}) cut(*set, start, end);
  for (const auto& [from, to] : unknown) add(known.empty() ? landed_ : beside_, from, to);
  for (const auto& [from, to] : known) {
    add(overtaken_, from, to);
    for (MissingSpan& span : spans_.take(from, to)) {
      aside_pages_ += span.pages();
      aside_.push_back(std::move(span));
    }
  }
  add(ranges_, start, end);
}

void MissingPages::settle_moves() {
  for (Intervals* set : {&overtaken_, &landed_, &beside_}) set->clear();
  aside_.clear();
  aside_pages_ = 0;
}

std::optional<MissingPages::Doubt> MissingPages::doubt() const {
  const bool unmapped = !doubtful_.empty();
  if (!unmapped && departures_.empty()) return std::nullopt;
  if (!unmapped) return Doubt{{RemoteAddr(departures_.back().start), RemoteAddr(departures_.back().end)}, false};
  const auto& [start, end] = *doubtful_.back().unanswered.begin();
  return Doubt{{RemoteAddr(start), RemoteAddr(end)}, true};
}

void MissingPages::registered(RemoteRange range) {
  const uint64_t start = range.start.get(), end = range.end.get();
  if (!doubtful_.empty()) {
    Doubtful& t = doubtful_.back();
    for (const auto& [from, to] : cut(t.unanswered, start, end)) add(t.registered, from, to);
    if (t.unanswered.empty()) doubtful_.pop_back();
  } else {
    departed_to(end);
  }
}

void MissingPages::gone(RemoteRange range) {
  drop(range.start.get(), range.end.get());
  if (doubtful_.empty()) return departed_to(range.end.get());
  // If it was not older, nothing is left of what came down; something that is registered has come there since.
  for (const Intervals* set : std::as_const(doubtful_.back()).sets())
    for (const auto& [from, to] : *set) drop(from, to);
  doubtful_.pop_back();
}

/// What the last departure left is known up to there.
void MissingPages::departed_to(uint64_t end) {
  if (departures_.empty()) return;
  departures_.back().start = end;
  if (end >= departures_.back().end) departures_.pop_back();
}

MissingPages MissingPages::forked() const {
  MissingPages child = *this;
  for (const Departure& d : std::exchange(child.departures_, {})) {
    Intervals left = outside(d.retaken, d.start, d.end);
    if (!left.empty()) child.doubtful_.push_back({d.start, d.end, std::move(left), {}});
  }
  child.settle_moves();
  return child;
}

bool MissingPages::aside(uint64_t source, uint64_t bytes) const {
  return std::ranges::any_of(aside_, [&](const MissingSpan& span) {
    const uint64_t from = std::max(source, span.source), to = std::min(source + bytes, span.source + span.bytes);
    return from < to && span.first(span.address + (from - span.source), span.address + (to - span.source));
  });
}

void MissingPages::grown(RemoteRange range) { add(ranges_, range.start.get(), range.end.get()); }

bool MissingPages::registered(uint64_t address) const { return around(ranges_, address) != ranges_.end(); }

uint64_t MissingPages::zeros_from(uint64_t address, uint64_t limit) const {
  const auto range = around(ranges_, address);
  if (range == ranges_.end() || source_of(address)) return 0;
  uint64_t end = std::min(range->second, address + limit);
  if (const auto missing = spans_.next(address)) end = std::min(end, missing->address);
  return end - address;
}

std::vector<RemoteRange> MissingPages::ranges() const {
  std::vector<RemoteRange> out;
  out.reserve(ranges_.size());
  for (const auto& [start, end] : ranges_) out.push_back({RemoteAddr(start), RemoteAddr(end)});
  return out;
}

}  // namespace migrate
