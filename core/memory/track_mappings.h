// What dirty tracking takes from a task's mappings, whichever way it tracks.
#pragma once

#include <functional>
#include <vector>

#include "core/base/procfs.h"
#include "core/memory/track_backend.h"
#include "core/memory/vma.h"

namespace migrate {

/// Anonymous memory whose writes show in the task's page tables.
bool is_private_anonymous(const Vma& vma);
inline bool is_private_file(const Vma& vma) { return !vma.shared && vma.has_file(); }

PageSet::Range range_of(const Vma& vma);

/// Adds a private anonymous mapping; neighbours that differ in protection only are one area.
void append_area(std::vector<TreeLayout::Area>& areas, const Vma& vma);

/// Adds private mappings of files, where they have copies of pages (`copies_in`), and sorts the areas. `own_root`: the
/// task's paths are not ours.
void add_private_files(const std::vector<Vma>& files, bool own_root,
                       const std::function<PageSet(const Vma&)>& copies_in, TaskTracker::Scan& out);

/// Tells one memory of a task from another: exec(2) changes it.
struct MemoryIdentity {
  uint64_t start_code = 0, start_data = 0, start_stack = 0, arg_start = 0, env_start = 0;
  static MemoryIdentity of(const ProcStat& stat);
  bool operator==(const MemoryIdentity&) const = default;
};
/// Whether somebody still uses the memory that `mem` (/proc/PID/mem) was opened for.
bool memory_in_use(int mem);

}  // namespace migrate
