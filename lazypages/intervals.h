// Sets of addresses as intervals.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace migrate {

/// Disjoint half-open intervals that do not touch: start → end.
using Intervals = std::map<uint64_t, uint64_t>;

/// The first interval of which something lies behind `at`.
template <class Set>
auto reaching_beyond(Set& set, uint64_t at) {
  auto i = set.upper_bound(at);
  return i != set.begin() && std::prev(i)->second > at ? std::prev(i) : i;
}

/// The interval that `at` is in, or the end.
inline Intervals::const_iterator around(const Intervals& set, uint64_t at) {
  const auto i = reaching_beyond(set, at);
  return i != set.end() && i->first <= at ? i : set.end();
}

/// The first part of [start, end) that is in.
inline std::optional<std::pair<uint64_t, uint64_t>> first_in(const Intervals& set, uint64_t start, uint64_t end) {
  const auto i = reaching_beyond(set, start);
  if (i == set.end() || i->first >= end) return std::nullopt;
  return std::pair(std::max(start, i->first), std::min(end, i->second));
}

/// The last one.
inline std::optional<std::pair<uint64_t, uint64_t>> last_in(const Intervals& set, uint64_t start, uint64_t end) {
  auto i = set.lower_bound(end);
  if (i == set.begin() || (--i)->second <= start) return std::nullopt;
  return std::pair(std::max(start, i->first), std::min(end, i->second));
}

/// Takes [start, end) out; returns the parts that were in.
inline std::vector<std::pair<uint64_t, uint64_t>> cut(Intervals& set, uint64_t start, uint64_t end) {
  std::vector<std::pair<uint64_t, uint64_t>> out;
  auto i = reaching_beyond(set, start);
  while (i != set.end() && i->first < end) {
    const auto [from, to] = *i;
    i = set.erase(i);
    out.emplace_back(std::max(from, start), std::min(to, end));
    if (from < start) set.emplace(from, start);
    if (to > end) i = set.emplace(end, to).first;
  }
  return out;
}

/// Puts [start, end) in.
inline void add(Intervals& set, uint64_t start, uint64_t end) {
  if (start >= end) return;
  auto i = set.upper_bound(start);
  if (i != set.begin() && std::prev(i)->second >= start) --i;
  while (i != set.end() && i->first <= end) {
    start = std::min(start, i->first);
    end = std::max(end, i->second);
    i = set.erase(i);
  }
  set.emplace(start, end);
}

/// The parts of [start, end) that are not in `set`.
inline Intervals outside(const Intervals& set, uint64_t start, uint64_t end) {
  Intervals out;
  add(out, start, end);
  for (auto i = reaching_beyond(set, start); i != set.end() && i->first < end; ++i) cut(out, i->first, i->second);
  return out;
}

}  // namespace migrate
