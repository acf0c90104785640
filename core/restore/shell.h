// A task shell: a process of ours with the pid of a task, which turns itself into the task.
#pragma once

#include <fcntl.h>

#include <map>
#include <span>
#include <vector>

#include "core/base/fd.h"
#include "core/files/socket_makers.h"
#include "core/image/image_set.h"
#include "core/memory/tree_layout.h"
#include "core/memory/tree_survey.h"
#include "core/restore/descriptor_room.h"
#include "core/restore/restore.h"
#include "core/restore/tree_order.h"

namespace migrate {

/// A file opened for mappings, as executable or as folder.
struct MappedFile {
  uint64_t id = 0;
  int access = 0;  ///< O_RDONLY or O_RDWR; kWorkFolder, kRootFolder
  auto operator<=>(const MappedFile&) const = default;
};
inline constexpr int kWorkFolder = O_PATH, kRootFolder = O_PATH | O_DIRECTORY;

/// Descriptors that the coordinator opened for the final images, by its own numbers.
struct Resources {
  DescriptorRoom room;
  std::map<MappedFile, int> files;
  std::map<uint64_t, int> shared_memory;  ///< anonymous shared objects by shmid
  bool own_ipc = false;                   ///< the tree has an IPC namespace of its own, which the coordinator is in

  /// Descriptors that a shell has besides those of its task: sockets, a pidfd, duplicates on their way.
  size_t needed() const { return 16 + files.size() + shared_memory.size(); }
};

/// What a shell inherits by fork.
struct ShellContext {
  std::vector<TaskNode> tasks;  ///< with their plan
  std::vector<Fd> shell_ends;   ///< control sockets by task index; none for shells that exist already
  bool own_namespaces = false;
  bool lazy = false;  ///< RestoreOptions::lazy
  int launcher = -1;  ///< socket, shared by all
  int coordinator_pidfd = -1;

  // Of this process, from when the final images came.
  DescriptorRoom room;
  std::map<MappedFile, int> files;
  std::map<uint64_t, int> shared_memory;
};

/// Our own descriptors start here until the tasks' are known.
inline constexpr int kLowestFloor = 64;

/// Forks the shells of `which` (indices of tasks with one parent: this process), with session helpers as planned; only
/// those with `before_setsid` equal to `early`. They fork their own children.
void fork_shells(ShellContext& context, const std::vector<int>& which, bool early, uint64_t parent_flag);

/// fcntl(2) F_DUPFD: moves a descriptor above the floor.
Fd move_above(Fd fd, int floor);

/// An ImageSet and tables packed into sealed memory, to be handed to other processes.
Fd pack_images(const ImageSet& images);
/// `reader`: all that this task needs; what tells of other tasks alone is left out.
ImageSet unpack_images(int fd, const TaskNode* reader = nullptr);
Fd pack_table(const std::map<uint32_t, int>& table);
std::map<uint32_t, int> unpack_table(int fd);
Fd pack_layout(const TreeLayout& layout);
TreeLayout unpack_layout(int fd);
Fd pack_areas(const std::vector<TreeLayout::Area>& areas);
std::vector<TreeLayout::Area> unpack_areas(int fd);
Fd pack_resources(const Resources& resources);
Resources unpack_resources(int fd);
Fd pack_discards(std::span<const PageDiscard> discards);
std::vector<PageDiscard> unpack_discards(int fd);
Fd pack_reserves(std::span<const PageReserve> pages);
std::vector<PageReserve> unpack_reserves(int fd);
Fd pack_memories(const std::vector<MemoryId>& memories);
std::vector<MemoryId> unpack_memories(int fd);
/// Private pages by task.
Fd pack_pages(const PagesByMemory& pages);
PagesByMemory unpack_pages(int fd);
Fd pack_threads(const std::vector<pid_t>& threads);
std::vector<pid_t> unpack_threads(int fd);
/// Tasks with their plan for a change, and the coordinator's number of the control socket of each that is new, else -1.
/// Descriptors in steps are the coordinator's.
Fd pack_sockets(const PeerCredentials& who, std::span<const SocketStep> steps);
std::vector<SocketStep> unpack_sockets(int fd, PeerCredentials& who);
Fd pack_nodes(const std::vector<TaskNode>& tasks, const std::vector<int>& ends);
std::vector<TaskNode> unpack_nodes(int fd, std::vector<int>& ends);

}  // namespace migrate
