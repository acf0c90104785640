// Layouts and discards of a round as messages, and back. What comes from a peer is hostile.
#pragma once

#include <span>
#include <vector>

#include "core/memory/tree_layout.h"
#include "migration.pb.h"

namespace migrate {

inline constexpr int kPartDiscards = 50'000;  ///< of pages in a message

/// In parts that fit into a frame; at least one.
std::vector<wire::Layout> to_wire(const TreeLayout& layout, uint32_t round);
std::vector<wire::Discards> to_wire(std::span<const PageDiscard> discards);

/// Puts the parts of one layout together.
class LayoutParts {
 public:
  /// True when the layout is complete. Throws Corrupt if the parts are not in order, too many, or describe no tree.
  bool add(const wire::Layout& part);
  TreeLayout take();

 private:
  void add_task(const wire::Layout::Task& task);
  void check() const;

  TreeLayout layout_;
  size_t areas_ = 0, texts_ = 0;  ///< so far; bytes of paths and names
};

/// Throws Corrupt for impossible ranges. Whether they lie in a memory is to be checked by who drops them.
std::vector<PageDiscard> from_wire(const wire::Discards& discards);
/// One message with the whole layout, for the guardian.
wire::Layout whole(const TreeLayout& layout);

MemoryId from_wire(const wire::MemoryName& name);
void to_wire(MemoryId memory, wire::MemoryName& name);

}  // namespace migrate
