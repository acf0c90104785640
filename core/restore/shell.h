// A task shell: a process of ours with the pid of a task, which turns itself into the task.
#pragma once

#include <map>
#include <vector>

#include "core/base/fd.h"
#include "core/image/image_set.h"
#include "core/restore/restore.h"
#include "core/restore/tree_order.h"

namespace migrate {

/// A file opened for mappings, as executable or as folder.
struct MappedFile {
  uint64_t id = 0;
  int access = 0;  ///< O_RDONLY or O_RDWR
  auto operator<=>(const MappedFile&) const = default;
};

/// What the coordinator prepares and every shell inherits by fork. All descriptors in it are numbered `floor` or higher,
/// above every number that a task uses, and live in this process and in all shells.
struct ShellContext {
  const ImageSet& images;
  std::vector<TaskNode> tasks;
  bool own_namespaces = false;
  bool userfault = true;             ///< for fillers in other processes
  int floor = 0;
  int launcher = -1;                 ///< socket, shared by all
  int coordinator_pidfd = -1;
  std::vector<Fd> coordinator_ends;  ///< control sockets, by task index
  std::vector<Fd> shell_ends;
  std::map<MappedFile, int> files;
  std::map<uint64_t, int> shared_memory;  ///< anonymous shared objects by shmid
};

/// Forks the shells of `which` (indices of tasks with one parent: this process), with session helpers as planned; only
/// those with `before_setsid` equal to `early`. They fork their own children.
void fork_shells(ShellContext& context, const std::vector<int>& which, bool early, uint64_t parent_flag);

/// fcntl(2) F_DUPFD: moves a descriptor above the floor.
Fd move_above(Fd fd, int floor);

/// An ImageSet and a table of descriptors packed into sealed memory, to be handed to other processes.
Fd pack_images(const ImageSet& images);
ImageSet unpack_images(int fd);
Fd pack_table(const std::map<uint32_t, int>& table);
std::map<uint32_t, int> unpack_table(int fd);

}  // namespace migrate
