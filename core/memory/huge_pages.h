// What a tree has in huge pages: whoever tracks it splits them, and whoever survives the tracker puts them back;
// whoever gets the tree has small pages first.
#pragma once

#include <chrono>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_runs.h"
#include "core/memory/track_set.h"

namespace migrate {

/// The huge pages of the tasks of a running tree, as they were at one moment. Tasks and memories that end are
/// forgotten.
class HugePages {
 public:
  HugePages() = default;
  /// Of `root` and all below it that live now. Never throws: a task that cannot be looked at is left out.
  static HugePages of_tree(Pid root);
  /// Collapses (MADV_COLLAPSE, Linux 6.1) those that were split since, once the dead tracker's userfaultfd is closed.
  /// The kernel may refuse it for a moment, so it is tried for as long as `patience`; then it was the task itself.
  void put_back(std::chrono::milliseconds patience) const;
  /// By memory, as the images number the tasks.
  PagesByMemory pages() const;
  bool empty() const { return tasks_.empty(); }

 private:
  struct Task {
    MemoryId memory;
    Fd pidfd, pagemap;  ///< of the memory it had
    PageSet huge;
  };
  std::vector<Task> tasks_;
};

/// Collapses those of `huge` that are split and have no hole, one block of 2 MiB at a time; false if some could not be.
bool collapse_split_pages(int pidfd, int pagemap, const PageSet& huge);

enum class Collapsed : uint8_t {
  done,
  needless,  ///< it is a huge page, or has holes, zero pages or pages shared since a fork: it stays as it is
  later,     ///< the kernel is using it
  never,
  no_memory,
  gone,  ///< the task
};
/// Makes one huge page of the small ones of an aligned block of 2 MiB. Meanwhile (some 10 ms) the task waits where it
/// maps or touches memory for the first time.
Collapsed collapse_block(int pidfd, int pagemap, uint64_t address);

}  // namespace migrate
