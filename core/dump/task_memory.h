// What /proc tells of a stopped task's memory: its mappings, and which pages of them exist.
#pragma once

#include <vector>

#include "core/base/procfs.h"
#include "core/memory/mapping_reader.h"
#include "core/memory/page_io.h"
#include "core/memory/vma.h"

namespace migrate {

bool is_vvar(const Vma& vma);
/// [vdso], [vvar], [vsyscall]: the kernel's own.
bool is_kernel_made(const Vma& vma);

struct TaskMemory {
  std::vector<Vma> vmas;        ///< with their flags, ascending
  std::vector<PageRun> pages;   ///< that are the task's own, and those of [vdso]; ascending; with `zero_ok`
  std::vector<PageRun> guards;  ///< guard regions, ascending
  bool foreseen = false;        ///< the flags are those of `foreseen`
};

/// The mappings of a large task that still runs, if only smaps tells their flags: reading it walks all page tables (20
/// ms a GiB of small pages). Empty for a small task, one that is gone, and where the reader is quick.
std::vector<Vma> foresee_mappings(const ProcDir& proc, const MappingReader& reader);

/// The task must be stopped. Where the reader is not quick: if maps tells just the mappings that were `foreseen`, their
/// flags are believed, and must be checked by changed_flags() later. Else smaps is read, for a large task by a thread
/// of ours while the caller scans its pages. Throws Error, Corrupt.
TaskMemory read_task_memory(const ProcDir& proc, const MappingReader& reader, const std::vector<Vma>& foreseen = {});

/// The first mapping of `then` whose flags or protection key differ `now` (flags in `ignored` apart); nullptr: none.
const Vma* changed_flags(const std::vector<Vma>& then, const std::vector<Vma>& now, uint32_t ignored);

}  // namespace migrate
