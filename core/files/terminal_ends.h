// Pseudo-terminals of a tree that still runs: whether others hold an end of them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/files/running_tree.h"
#include "core/files/terminal_dump.h"

namespace migrate {

class TerminalEnds {
 public:
  explicit TerminalEnds(const FileDumpOptions& options) : options_(options) {}
  /// Throws Refusal for what cannot be carried whatever comes.
  void see(const OpenFile& file, TerminalEnd end);
  void demand_none_outside(const RunningTree& tree) const;

 private:
  struct Seen {
    const ProcDir* proc = nullptr;
    int fd = -1;
    std::string link, name;
    Fd get() const;
    bool still_there() const;
  };
  std::optional<std::string> other_master(const RunningTree& tree, uint32_t index) const;
  void demand_masters(const RunningTree& tree) const;
  void demand_no_guests(const RunningTree& tree) const;
  void demand_flow() const;

  const FileDumpOptions& options_;
  std::map<uint32_t, Seen> masters_, slaves_;
};

}  // namespace migrate
