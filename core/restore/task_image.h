// Everything the images say about one task, read and checked for ranges once.
#pragma once

#include <map>
#include <vector>

#include "core/restore/address_space.h"
#include "core/restore/tree_order.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"
#include "images/file-lock.pb.h"
#include "images/fs.pb.h"
#include "images/mm.pb.h"

namespace migrate {

struct TaskImage {
  pid_t pid = 0;
  std::vector<pid_t> tids;             ///< the leader's first
  std::vector<img::core_entry> cores;  ///< one a thread, same order
  img::task_kobj_ids_entry ids;
  img::mm_entry mm;
  img::fs_entry fs;
  std::vector<ImageVma> vmas, guards;
  std::map<pid_t, ext::ThreadExt> extra;    ///< for threads that have one
  std::vector<img::file_lock_entry> locks;  ///< to be taken through this task's descriptors

  const img::core_entry& core() const { return cores.front(); }
  /// Empty if the image has none.
  const ext::TaskExt& task_extra() const {
    const auto it = extra.find(pid);
    return it == extra.end() ? ext::TaskExt::default_instance() : it->second.task();
  }
};

/// Throws Corrupt if the image of a thread that will run does not say whose it is.
void check_credentials(const img::core_entry& core, const std::string& image);

/// `node` must not be a zombie. Throws Corrupt, or Refusal for what cannot be restored.
TaskImage read_task(const ImageSet& images, const TaskNode& node);
/// Of all that are no zombies, in their order.
std::vector<TaskImage> read_tasks(const ImageSet& images, const std::vector<TaskNode>& nodes);

}  // namespace migrate
