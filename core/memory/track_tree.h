// The living tasks of a running tree, numbered as the images number them.
#pragma once

#include <vector>

#include "core/base/procfs.h"
#include "core/base/types.h"
#include "core/memory/tree_layout.h"

namespace migrate {

struct LivingTask {
  pid_t pid = 0;                                           ///< as our /proc numbers it
  pid_t parent = 0;                                        ///< likewise; 0 for the root
  pid_t image_pid = 0, image_ppid = 0, pgid = 0, sid = 0;  ///< innermost numbers; image_ppid 0 for the root
  int exit_signal = 0;                                     ///< clone(2)
  int terminal = -1;                                       ///< its controlling terminal is /dev/pts/N; -1: none
  bool borrows_memory = false;                             ///< runs in its parent's memory (between vfork and exec)
  bool ended = false;                                      ///< a zombie, or nearly
};

/// Parents before children, the root first; empty if the root is gone. Tasks come and go meanwhile: one that is missed
/// is found the next time. `with_leaders`: also zombies that lead a group of some of them, at the end.
std::vector<LivingTask> list_living(Pid root, bool with_leaders = false);

/// Its place in a layout, without areas. The number of a zombie that leads a group is in use as long as the group is:
/// at the destination it must be there before those that join.
TreeLayout::Task layout_of(const LivingTask& task);

}  // namespace migrate
