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
    insert({ranges[i].start.get(), sources[i], bytes});
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
    insert({run.address, run.address, end - run.address});
    last = end;
  }
}

uint64_t MissingPages::words() const {
  return 5 + 3 * (pieces_.size() + aside_.size()) + 2 * (ranges_.size() + overtaken_.size() + left_.size());
}

void MissingPages::save(std::span<uint64_t> words) const {
  size_t at = 0;
  const auto put = [&](uint64_t word) { words[at++] = word; };
  put(pieces_.size());
  for (const auto& [start, piece] : pieces_) {
    put(start);
    put(piece.source);
    put(piece.end - start);
  }
  put(aside_.size());
  for (const MissingRun& run : aside_) {
    put(run.address);
    put(run.source);
    put(run.bytes);
  }
  for (const Intervals* set : {&ranges_, &overtaken_, &left_}) {
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
  const auto get_run = [&] {
    const uint64_t address = get(), source = get();
    return MissingRun{address, source, get()};
  };
  for (uint64_t n = get(); n > 0; --n) m.insert(get_run());
  for (uint64_t n = get(); n > 0; --n) {
    m.aside_.push_back(get_run());
    m.pages_ += m.aside_.back().bytes / kPageSize;
  }
  for (Intervals* set : {&m.ranges_, &m.overtaken_, &m.left_}) {
    for (uint64_t n = get(); n > 0; --n) {
      const uint64_t start = get();
      set->emplace(start, get());
    }
  }
  return m;
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
  }
}

void MissingPages::insert(MissingRun run) {
  pages_ += run.bytes / kPageSize;
  // Neighbours that go on at the source too become one piece.
  const auto next = pieces_.lower_bound(run.address);
  if (next != pieces_.end() && next->first == run.address + run.bytes &&
      next->second.source == run.source + run.bytes) {
    const uint64_t bytes = next->second.end - next->first;
    pages_ -= bytes / kPageSize;
    erase(next);
    run.bytes += bytes;
    pages_ += bytes / kPageSize;
  }
  auto at = pieces_.lower_bound(run.address);
  if (at != pieces_.begin()) {
    --at;
    if (at->second.end == run.address && at->second.source + (at->second.end - at->first) == run.source) {
      at->second.end += run.bytes;
      return;
    }
  }
  pieces_[run.address] = {run.address + run.bytes, run.source};
  by_source_[run.source] = run.address;
}

void MissingPages::erase(Pieces::iterator piece) {
  by_source_.erase(piece->second.source);
  pieces_.erase(piece);
}

void MissingPages::split_at(uint64_t address) {
  auto i = pieces_.upper_bound(address);
  if (i == pieces_.begin()) return;
  --i;
  if (i->first == address || i->second.end <= address) return;
  const Piece rest{i->second.end, i->second.source + (address - i->first)};
  i->second.end = address;
  pieces_[address] = rest;
  by_source_[rest.source] = address;
}

std::vector<MissingRun> MissingPages::take(uint64_t start, uint64_t end) {
  std::vector<MissingRun> taken;
  if (start >= end) return taken;
  split_at(start);
  split_at(end);
  for (auto i = pieces_.lower_bound(start); i != pieces_.end() && i->first < end;) {
    const uint64_t bytes = i->second.end - i->first;
    taken.push_back({i->first, i->second.source, bytes});
    pages_ -= bytes / kPageSize;
    const auto gone = i++;
    erase(gone);
  }
  return taken;
}

/// The same from what was set aside.
std::vector<MissingRun> MissingPages::take_aside(uint64_t start, uint64_t end) {
  std::vector<MissingRun> taken, rest;
  for (const MissingRun& run : aside_) {
    const uint64_t run_end = run.address + run.bytes;
    const uint64_t from = std::clamp(start, run.address, run_end), to = std::clamp(end, run.address, run_end);
    const auto part = [&](uint64_t first, uint64_t last) {
      return MissingRun{first, run.source + (first - run.address), last - first};
    };
    if (from >= to) {
      rest.push_back(run);
      continue;
    }
    taken.push_back(part(from, to));
    if (run.address < from) rest.push_back(part(run.address, from));
    if (to < run_end) rest.push_back(part(to, run_end));
    pages_ -= (to - from) / kPageSize;
  }
  aside_ = std::move(rest);
  return taken;
}

uint64_t MissingPages::settle(RemoteRange range) {
  const uint64_t before = pages_;
  take(range.start.get(), range.end.get());
  return before - pages_;
}

void MissingPages::unmapped(RemoteRange range) {
  const uint64_t start = range.start.get(), end = range.end.get();
  // What a move brought there since is not what was unmapped.
  const auto newer = cut(overtaken_, start, end);
  cut(left_, start, end);
  uint64_t at = start;
  const auto drop = [&](uint64_t to) {
    take(at, to);
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
  std::vector<MissingRun> moving;
  uint64_t at = from.get();
  const auto gather = [&](std::vector<MissingRun> runs) { moving.insert(moving.end(), runs.begin(), runs.end()); };
  Intervals older = overtaken_;
  for (const auto& [start, end] : left_) cut(older, start, end);
  for (const auto& [start, end] : cut(older, from.get(), from_end)) {
    gather(take(at, start));
    gather(take_aside(start, end));
    add(left_, start, end);
    at = end;
  }
  gather(take(at, from_end));

  for (const auto& [start, end] : cut(ranges_, to.get(), to_end)) {
    add(overtaken_, start, end);
    cut(left_, start, end);
    for (const MissingRun& run : take(start, end)) {
      aside_.push_back(run);
      pages_ += run.bytes / kPageSize;
    }
  }
  add(ranges_, to.get(), to_end);
  for (const MissingRun& run : moving) insert({to.get() + (run.address - from.get()), run.source, run.bytes});
}

void MissingPages::settle_moves() {
  overtaken_.clear();
  left_.clear();
  for (const MissingRun& run : aside_) pages_ -= run.bytes / kPageSize;
  aside_.clear();
}

bool MissingPages::aside(uint64_t source, uint64_t bytes) const {
  return std::ranges::any_of(
      aside_, [&](const MissingRun& run) { return run.source < source + bytes && source < run.source + run.bytes; });
}

void MissingPages::grown(RemoteRange range) { add(ranges_, range.start.get(), range.end.get()); }

std::optional<uint64_t> MissingPages::source_of(uint64_t address) const {
  auto i = pieces_.upper_bound(address);
  if (i == pieces_.begin() || (--i)->second.end <= address) return std::nullopt;
  return i->second.source + (address - i->first);
}

bool MissingPages::registered(uint64_t address) const { return around(ranges_, address) != ranges_.end(); }

std::optional<MissingRun> MissingPages::first_of_source(uint64_t source, uint64_t bytes) const {
  auto i = by_source_.upper_bound(source);
  if (i != by_source_.begin()) {
    const auto before = std::prev(i);
    const auto& piece = *pieces_.find(before->second);
    if (before->first + (piece.second.end - piece.first) > source) i = before;
  }
  if (i == by_source_.end() || i->first >= source + bytes) return std::nullopt;
  const auto& piece = *pieces_.find(i->second);
  const uint64_t skip = source > i->first ? source - i->first : 0;
  const uint64_t first = i->first + skip;
  return MissingRun{piece.first + skip, first, std::min(piece.second.end - piece.first - skip, source + bytes - first)};
}

std::optional<MissingRun> MissingPages::next(uint64_t address) const {
  auto i = pieces_.upper_bound(address);
  if (i != pieces_.begin() && std::prev(i)->second.end > address) --i;
  if (i == pieces_.end()) return std::nullopt;
  const uint64_t skip = address > i->first ? address - i->first : 0;
  return MissingRun{i->first + skip, i->second.source + skip, i->second.end - i->first - skip};
}

uint64_t MissingPages::zeros_from(uint64_t address, uint64_t limit) const {
  const auto range = around(ranges_, address);
  if (range == ranges_.end() || source_of(address)) return 0;
  uint64_t end = std::min(range->second, address + limit);
  if (const auto missing = pieces_.lower_bound(address); missing != pieces_.end()) end = std::min(end, missing->first);
  return end - address;
}

std::vector<MissingRun> MissingPages::runs() const {
  std::vector<MissingRun> out;
  out.reserve(pieces_.size());
  for (const auto& [start, piece] : pieces_) out.push_back({start, piece.source, piece.end - start});
  return out;
}

std::vector<RemoteRange> MissingPages::ranges() const {
  std::vector<RemoteRange> out;
  out.reserve(ranges_.size());
  for (const auto& [start, end] : ranges_) out.push_back({RemoteAddr(start), RemoteAddr(end)});
  return out;
}

}  // namespace migrate
