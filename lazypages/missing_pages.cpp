#include "lazypages/missing_pages.h"

#include <algorithm>
#include <iterator>

#include "core/base/error.h"
#include "lazypages/intervals.h"

namespace migrate {
namespace {

[[noreturn]] void refuse(const char* why) { throw Corrupt("lazy memory", why); }

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
  uint64_t n = 2 + spans_.words();
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
  for (const Intervals* set : sets()) {
    put(set->size());
    for (const auto& [start, end] : *set) {
      put(start);
      put(end);
    }
  }
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
  for (Intervals* set : m.sets()) {
    for (uint64_t n = get(); n > 0; --n) {
      const uint64_t start = get();
      set->emplace(start, get());
    }
  }
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
  uint64_t intervals = 0;
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

void MissingPages::unmapped(RemoteRange range) {
  const uint64_t start = range.start.get(), end = range.end.get();
  // What a move brought there since is not what was unmapped.
  auto newer = cut(overtaken_, start, end);
  cut(left_, start, end);
  cut(leaving_, start, end);
  cut(doubtful_, start, end);
  for (const auto& [from, to] : cut(landed_, start, end)) {
    add(doubtful_, from, to);
    newer.emplace_back(from, to);
  }
  std::ranges::sort(newer);
  uint64_t at = start;
  const auto drop = [&](uint64_t to) {
    spans_.drop(at, to);
    if (at < to) cut(ranges_, at, to);
  };
  for (const auto& [from, to] : newer) {
    drop(from);
    take_aside(from, to);
    at = to;
  }
  drop(end);
}

void MissingPages::moved(RemoteAddr from, RemoteAddr to, uint64_t bytes) {
  const uint64_t from_end = from.get() + bytes, to_end = to.get() + bytes;
  // From an overtaken place it is the older move.
  std::vector<MissingSpan> moving;
  uint64_t at = from.get();
  const auto gather = [&](std::vector<MissingSpan> spans) { std::ranges::move(spans, std::back_inserter(moving)); };
  Intervals older = overtaken_;
  for (const auto& [start, end] : left_) cut(older, start, end);
  for (const auto& [start, end] : cut(older, from.get(), from_end)) {
    gather(spans_.take(at, start));
    gather(take_aside(start, end));
    add(left_, start, end);
    at = end;
  }
  gather(spans_.take(at, from_end));
  // It was registered, whether it was known or has grown.
  add(ranges_, from.get(), from_end);
  add(leaving_, from.get(), from_end);
  cut(landed_, from.get(), from_end);
  cut(doubtful_, from.get(), from_end);

  land(to.get(), to_end);
  for (MissingSpan& span : moving) {
    span.address = to.get() + (span.address - from.get());
    spans_.insert(std::move(span));
  }
  join_spans();
}

/// A move comes down here.
void MissingPages::land(uint64_t start, uint64_t end) {
  for (const auto& [from, to] : cut(doubtful_, start, end)) {
    cut(ranges_, from, to);
    spans_.drop(from, to);
  }
  add(landed_, start, end);
  for (const auto& [from, to] : cut(ranges_, start, end)) {
    cut(landed_, from, to);
    add(overtaken_, from, to);
    cut(left_, from, to);
    for (MissingSpan& span : spans_.take(from, to)) {
      aside_pages_ += span.pages();
      aside_.push_back(std::move(span));
    }
  }
  // Where a move has come already, only its UNMAP is older.
  for (const auto& [from, to] : cut(leaving_, start, end)) add(left_, from, to);
  add(ranges_, start, end);
}

void MissingPages::settle_moves() {
  for (Intervals* set : {&overtaken_, &left_, &landed_}) set->clear();
  aside_.clear();
  aside_pages_ = 0;
}

std::optional<MissingPages::Doubt> MissingPages::doubt() const {
  for (const Intervals* set : {&doubtful_, &leaving_}) {
    if (set->empty()) continue;
    const auto& [start, end] = *set->begin();
    return Doubt{{RemoteAddr(start), RemoteAddr(end)}, set == &doubtful_};
  }
  return std::nullopt;
}

MissingPages MissingPages::forked() const {
  MissingPages child = *this;
  child.settle_moves();
  return child;
}

void MissingPages::registered(RemoteRange range) {
  for (Intervals* set : {&doubtful_, &leaving_}) cut(*set, range.start.get(), range.end.get());
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
