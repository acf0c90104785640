// Pseudo-terminals made for a tree by their numbers: a program knows /dev/pts/N, and keeps it. They are needed twice:
// by session leaders before they have children, since a controlling terminal is only inherited, and as open files.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <set>

#include "core/base/fd.h"

namespace migrate {

class TerminalPairs {
 public:
  struct Pair {
    Fd master;
    Fd slave;  ///< empty until somebody needs it open; as long as it is there a session keeps the terminal
  };

  /// Makes those that are not there yet. Throws Refusal naming a number that is taken, after a while: a tree that was
  /// killed a moment ago may still hold it.
  void make(const std::set<uint32_t>& indices, std::chrono::milliseconds patience = std::chrono::seconds(1));
  bool has(uint32_t index) const { return pairs_.contains(index); }
  Pair& get(uint32_t index) { return pairs_.at(index); }
  /// Of a new pair, and of its slave.
  int slave(uint32_t index);
  /// A slave whose master is closed, with that number if it is free. `flags`: of open(2).
  static Fd hung_up(uint32_t index, int flags);
  /// Closes all.
  void clear() { pairs_.clear(); }

 private:
  std::map<uint32_t, Pair> pairs_;
};

}  // namespace migrate
