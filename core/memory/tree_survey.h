// What a running tree has in memory, read from /proc alone: nothing of it is touched or stopped.
#pragma once

#include <map>
#include <vector>

#include "core/memory/mapping_reader.h"
#include "core/memory/page_io.h"
#include "core/memory/track_tree.h"
#include "core/memory/tree_layout.h"

namespace migrate {

/// Pages for which memory is to be made ready.
struct PageReserve {
  MemoryId memory;
  uint64_t address = 0, pages = 0;
  bool huge_pages = false;  ///< whole aligned blocks of 2 MiB, which the task would get as huge pages too
  bool operator==(const PageReserve&) const = default;
};

struct TreeSurvey {
  TreeLayout layout;               ///< private anonymous memory; no shared objects
  std::vector<PageReserve> pages;  ///< that exist there; ascending and disjoint in each memory
};

/// True of the moments at which it was read only: the tree runs. Tasks that end meanwhile are left out. Throws Error if
/// the root is gone or /proc cannot be read.
TreeSurvey survey_tree(Pid root, const MappingReader& mappings);
/// Of several trees, one after the other as list_living() has them; any root is one.
TreeSurvey survey_tasks(const std::vector<LivingTask>& tasks, const MappingReader& mappings);

/// What of `reserved` is in none of the `existing` pages: memory that was made ready for nothing.
std::vector<PageDiscard> unused_pages(const std::vector<PageReserve>& reserved,
                                      const std::vector<PageSource>& existing);

/// Cuts `runs` of a memory into those of huge pages, as far as `allowed` (ascending, disjoint), and the rest;
/// ascending.
std::vector<PageReserve> split_huge(MemoryId memory, const std::vector<PageRun>& runs,
                                    const std::vector<PageRun>& allowed);

}  // namespace migrate
