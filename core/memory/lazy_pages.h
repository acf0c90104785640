// Which pages of a stopped task may come after the program has begun to run at its destination, and which must be there
// before (post-copy).
#pragma once

#include <map>
#include <span>

#include "core/image/image_set.h"
#include "core/memory/page_runs.h"
#include "core/memory/track_set.h"
#include "images/core.pb.h"
#include "images/mm.pb.h"

namespace migrate {

/// Places that the kernel reads or writes without a fault that could be waited for, that a restore writes to, or that
/// are needed at once: signal, thread and robust-futex structures of all threads (restartable sequences, robust lists
/// with their entries, tid words, futexes of interrupted calls and those that a running thread may be about to call
/// for), the stacks where they stand, arguments and environment. `threads`: the leader's first. `mem`: /proc/PID/mem,
/// or -1: entries of lists are not looked for. What cannot be read of what the program names is passed over, as the
/// kernel does.
PageSet eager_pages(const img::mm_entry& mm, std::span<const img::core_entry> threads, int mem);

/// All addresses whose pages may come late: private anonymous memory that is not locked, less `eager`: eager_pages() of
/// the task.
PageSet lazy_pages(const img::mm_entry& mm, const PageSet& eager);

/// Private anonymous memory of any pages: what userfaultfd(2) serves and a restore registers (one mapping as a whole).
/// Not what a fork wipes (MADV_WIPEONFORK): the child's zeros cannot be told from missing pages.
/// `status`, `flags`, `madvise`: those of vma_entry.
bool may_be_lazy(uint32_t status, uint32_t flags, uint64_t madvise);

/// Pages of shared anonymous memory that may come late: of objects of some size which each task maps once, in the
/// object's order, and nobody has locked; 4 TiB at most. Who has a descriptor reads zeros and is not told of: memfds
/// are none of these.
class LazyShared {
 public:
  /// `eager`: eager_pages() of the task.
  void add_task(const img::mm_entry& mm, const PageSet& eager);
  /// By object; offsets.
  PagesByMemory take() const;

 private:
  struct Object {
    bool fit = true;
    PageSet mapped, eager;
  };
  std::map<uint64_t, Object> objects_;
};

}  // namespace migrate
