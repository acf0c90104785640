// Sets of pages of several memories, as messages, and back: which are missing, or may be. What comes from a peer is
// hostile.
#pragma once

#include <vector>

#include "core/memory/page_runs.h"
#include "migration.pb.h"

namespace migrate {

/// In parts of a message each; at least one, and the last one says so.
std::vector<wire::Discards> to_wire(const PagesByMemory& pages);
/// One for a guardian, which takes any size.
wire::Discards whole_to_wire(const PagesByMemory& pages);
/// Adds what a part says. Throws Corrupt for impossible ranges. Whether they may be missing is the restore's to check.
void add_from_wire(const wire::Discards& part, PagesByMemory& pages);

/// Bounds for what a peer tells in parts: each of them costs whoever keeps all about as much as all of them.
class PartsBound {
 public:
  /// `what`: "huge pages".
  PartsBound(const char* what, int most_runs) : what_(what), most_runs_(most_runs) {}
  /// Throws Corrupt if there are too many pages, or more parts than an honest peer needs for them.
  void count(const wire::Discards& part);

 private:
  const char* what_;
  const int most_runs_;
  int runs_ = 0, parts_ = 0;
};

}  // namespace migrate
