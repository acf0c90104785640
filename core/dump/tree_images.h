// Images about the tree as a whole: pstree, inventory, cgroup, timens, and the per-task ids and fs.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/files/dump_files.h"
#include "core/freeze/stopped_tree.h"
#include "core/image/image_set.h"
#include "core/inject/harvest.h"
#include "core/task/core_image.h"
#include "images/core.pb.h"

namespace migrate {

/// Pids of a task as the images number them. A process group or session outside the tree's pid namespace is 0.
struct TaskNumbers {
  pid_t pid = 0, ppid = 0, pgid = 0, sid = 0;
};
TaskNumbers task_numbers(const StoppedTask& task, const ImagePids& pids, bool root);

/// Namespace ids: those of the dumping process, and of the tree where a restore must make a new one (time).
void fill_root_ids(img::task_kobj_ids_entry& ids);
void fill_task_ids(uint32_t ordinal, uint32_t files_id, bool own_ipc, img::task_kobj_ids_entry& ids);
/// Of an IPC namespace of the tree's own (`own_ipc`), in its images' names.
uint32_t own_ipc_namespace_id();

/// Cgroup memberships, each distinct set once.
class CgroupSets {
 public:
  /// Id of the set of memberships that the task is in; the first is 1.
  uint32_t add(const ProcDir& task);
  void write(ImageSet& images) const;

 private:
  std::map<std::string, uint32_t> sets_;  ///< text of /proc/PID/cgroup → id
};

void write_pstree(const std::vector<StoppedTask>& tasks, const ImagePids& pids, ImageSet& images);
void write_fs(const StoppedTask& task, pid_t image_pid, FileDumper& files, ImageSet& images);
void write_timens(const TaskHarvest& root, ImageSet& images);
void write_inventory(bool tcp_close, ImageSet& images);

}  // namespace migrate
