#include "lazypages/missing_spans.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "core/base/types.h"

namespace migrate {
namespace {

constexpr uint64_t kBits = 64;

/// Both go on in the same way: of one, the other is another part.
bool in_line(const MissingSpan& a, const MissingSpan& b) { return b.address - a.address == b.source - a.source; }

/// Of so many pages.
uint64_t words_of(uint64_t pages) { return (pages + kBits - 1) / kBits; }

/// Bits from `first` on, as many as a word has.
uint64_t word_at(const std::vector<uint64_t>& bits, uint64_t first) {
  const uint64_t i = first / kBits, shift = first % kBits;
  const uint64_t low = i < bits.size() ? bits[i] >> shift : 0;
  return shift == 0 || i + 1 >= bits.size() ? low : low | bits[i + 1] << (kBits - shift);
}

void set(std::vector<uint64_t>& bits, uint64_t from, uint64_t to, bool value) {
  while (from < to) {
    const uint64_t shift = from % kBits, n = std::min(kBits - shift, to - from);
    const uint64_t mask = (n == kBits ? ~uint64_t{0} : (uint64_t{1} << n) - 1) << shift;
    uint64_t& word = bits[from / kBits];
    word = value ? word | mask : word & ~mask;
    from += n;
  }
}

/// The first page from `from` on, below `to`, that is missing, or is not; else `to`.
uint64_t find(const std::vector<uint64_t>& bits, uint64_t from, uint64_t to, bool missing) {
  while (from < to) {
    const uint64_t word = missing ? word_at(bits, from) : ~word_at(bits, from);
    if (word != 0) return std::min(to, from + static_cast<uint64_t>(std::countr_zero(word)));
    from += kBits;
  }
  return to;
}

/// Puts the pages of `span` in.
void mark(std::vector<uint64_t>& bits, uint64_t first, const MissingSpan& span) {
  const uint64_t pages = span.bytes / kPageSize;
  if (span.bits.empty()) return set(bits, first, first + pages, true);
  const uint64_t shift = first % kBits;
  for (uint64_t i = 0; i < span.bits.size(); ++i) {
    bits[first / kBits + i] |= span.bits[i] << shift;
    if (const uint64_t rest = shift == 0 ? 0 : span.bits[i] >> (kBits - shift); rest != 0)
      bits[first / kBits + i + 1] |= rest;
  }
}

/// Of two in line.
MissingSpan joined(const MissingSpan& a, const MissingSpan& b) {
  MissingSpan all{a.address, a.source, b.end() - a.address, {}};
  if (a.end() == b.address && a.bits.empty() && b.bits.empty()) return all;
  all.bits.resize(words_of(all.bytes / kPageSize));
  mark(all.bits, 0, a);
  mark(all.bits, (b.address - a.address) / kPageSize, b);
  return all;
}

}  // namespace

uint64_t MissingSpan::pages() const {
  if (bits.empty()) return bytes / kPageSize;
  uint64_t n = 0;
  for (const uint64_t word : bits) n += static_cast<uint64_t>(std::popcount(word));
  return n;
}

bool MissingSpan::misses(uint64_t at) const {
  if (at < address || at >= end()) return false;
  const uint64_t page = (at - address) / kPageSize;
  return bits.empty() || (bits[page / kBits] >> page % kBits & 1) != 0;
}

std::optional<MissingRun> MissingSpan::first(uint64_t from, uint64_t to) const {
  from = std::max(from, address);
  to = std::min(to, end());
  if (from >= to) return std::nullopt;
  if (!bits.empty()) {
    const uint64_t last = (to - address) / kPageSize;
    const uint64_t page = find(bits, (from - address) / kPageSize, last, true);
    from = address + page * kPageSize;
    to = address + find(bits, page, last, false) * kPageSize;
    if (from >= to) return std::nullopt;
  }
  return MissingRun{from, source + (from - address), to - from};
}

std::optional<MissingSpan> MissingSpan::part(uint64_t from, uint64_t to) const {
  const auto run = first(from, to);
  if (!run) return std::nullopt;
  to = std::min(to, end());
  MissingSpan some{run->address, run->source, to - run->address, {}};
  if (run->bytes == some.bytes) return some;
  while (!misses(to - kPageSize)) to -= kPageSize;
  some.bytes = to - some.address;
  if (run->bytes == some.bytes) return some;
  const uint64_t pages = some.bytes / kPageSize, skipped = (some.address - address) / kPageSize;
  some.bits.resize(words_of(pages));
  for (uint64_t i = 0; i < some.bits.size(); ++i) some.bits[i] = word_at(bits, skipped + i * kBits);
  set(some.bits, pages, some.bits.size() * kBits, false);
  return some;
}

bool MissingSpan::make_hole(uint64_t from, uint64_t to) {
  if (from <= address || to >= end() || bytes > MissingSpans::kMostWithHoles) return false;
  const uint64_t pages = bytes / kPageSize, first = (from - address) / kPageSize;
  if (bits.empty()) {
    bits.resize(words_of(pages));
    set(bits, 0, pages, true);
  }
  set(bits, first, first + (to - from) / kPageSize, false);
  return true;
}

/// The one that `address` is in, or the first behind it.
MissingSpans::Spans::const_iterator MissingSpans::at_or_after(uint64_t address) const {
  auto i = spans_.upper_bound(address);
  if (i != spans_.begin() && std::prev(i)->second.end() > address) --i;
  return i;
}

MissingSpan MissingSpans::pull(Spans::const_iterator at) {
  auto node = spans_.extract(at);
  MissingSpan span = std::move(node.mapped());
  by_source_.erase(span.source);
  const uint64_t pages = span.pages();
  pages_ -= pages;
  bit_pages_ -= span.bits.empty() ? 0 : pages;
  bit_words_ -= span.bits.size();
  return span;
}

void MissingSpans::put(MissingSpan span) {
  const uint64_t pages = span.pages();
  pages_ += pages;
  bit_pages_ += span.bits.empty() ? 0 : pages;
  bit_words_ += span.bits.size();
  by_source_[span.source] = span.address;
  const uint64_t address = span.address;
  spans_.emplace(address, std::move(span));
}

/// What there is of it outside of [start, end).
void MissingSpans::put_rest(const MissingSpan& span, uint64_t start, uint64_t end) {
  if (auto before = span.part(span.address, start)) put(std::move(*before));
  if (auto after = span.part(end, span.end())) put(std::move(*after));
}

void MissingSpans::insert(MissingSpan span) {
  take(span.address, span.end());  // nothing, but a span with a hole there becomes two
  const auto fits = [](const MissingSpan& a, const MissingSpan& b) {
    return a.end() == b.address && in_line(a, b) &&
           ((a.bits.empty() && b.bits.empty()) || a.bytes + b.bytes <= kMostWithHoles);
  };
  const auto next = spans_.lower_bound(span.address);
  if (next != spans_.end() && fits(span, next->second)) span = joined(span, pull(next));
  const auto behind = spans_.lower_bound(span.address);
  if (behind != spans_.begin() && fits(std::prev(behind)->second, span)) span = joined(pull(std::prev(behind)), span);
  put(std::move(span));
}

std::vector<MissingSpan> MissingSpans::take(uint64_t start, uint64_t end) {
  std::vector<MissingSpan> taken;
  for (auto i = at_or_after(start); start < end && i != spans_.end() && i->first < end; i = at_or_after(start)) {
    const MissingSpan span = pull(i);
    put_rest(span, start, end);
    if (auto some = span.part(start, end)) taken.push_back(std::move(*some));
    start = std::min(end, span.end());
  }
  return taken;
}

void MissingSpans::drop(uint64_t start, uint64_t end) {
  for (auto i = at_or_after(start); start < end && i != spans_.end() && i->first < end; i = at_or_after(start)) {
    MissingSpan span = pull(i);
    const uint64_t next = std::min(end, span.end());
    // Only the part of a long one that the hole is in becomes bits.
    const uint64_t window = start / kMostWithHoles * kMostWithHoles;
    auto part = span.bytes <= kMostWithHoles ? std::nullopt : span.part(window, window + kMostWithHoles);
    if (part && part->make_hole(start, end)) {
      put_rest(span, part->address, part->end());
      put(std::move(*part));
    } else if (span.make_hole(start, end)) {
      put(std::move(span));
    } else {
      put_rest(span, start, end);
    }
    start = next;
  }
}

void MissingSpans::join() {
  for (auto i = spans_.begin(); i != spans_.end();) {
    const auto next = std::next(i);
    if (next == spans_.end()) return;
    const MissingSpan &a = i->second, &b = next->second;
    if (!in_line(a, b) || b.end() - a.address > kMostWithHoles ||
        first_of_source(a.source + a.bytes, b.address - a.end())) {
      i = next;
      continue;
    }
    MissingSpan both = joined(a, b);
    const uint64_t address = both.address;
    pull(next);
    pull(i);
    put(std::move(both));
    i = spans_.find(address);
  }
}

std::optional<uint64_t> MissingSpans::source_of(uint64_t address) const {
  const auto i = at_or_after(address);
  if (i == spans_.end() || !i->second.misses(address)) return std::nullopt;
  return i->second.source + (address - i->first);
}

std::optional<MissingRun> MissingSpans::next(uint64_t address) const {
  for (auto i = at_or_after(address); i != spans_.end(); ++i)
    if (const auto run = i->second.first(address, i->second.end())) return run;
  return std::nullopt;
}

std::optional<MissingRun> MissingSpans::first_of_source(uint64_t source, uint64_t bytes) const {
  auto i = by_source_.upper_bound(source);
  if (i != by_source_.begin()) --i;
  for (; i != by_source_.end() && i->first < source + bytes; ++i) {
    const MissingSpan& span = spans_.at(i->second);
    const uint64_t skip = source > span.source ? source - span.source : 0;
    if (skip >= span.bytes) continue;
    const uint64_t most = std::min(span.bytes, source + bytes - span.source);
    if (const auto run = span.first(span.address + skip, span.address + most)) return run;
  }
  return std::nullopt;
}

std::vector<MissingRun> MissingSpans::runs() const {
  std::vector<MissingRun> all;
  for (const auto& [start, span] : spans_) {
    for (auto run = span.first(start, span.end()); run; run = span.first(run->address + run->bytes, span.end())) {
      MissingRun* last = all.empty() ? nullptr : &all.back();
      if (last != nullptr && last->address + last->bytes == run->address && last->source + last->bytes == run->source) {
        last->bytes += run->bytes;
      } else {
        all.push_back(*run);
      }
    }
  }
  return all;
}

}  // namespace migrate
