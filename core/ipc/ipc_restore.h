// Makes a tree's IPC namespace and what is in it. In the coordinator of a restore.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "core/base/fd.h"
#include "core/ipc/ipc_images.h"

namespace migrate {

/// Where the images may be hostile: nothing is made by, or for, others than the tree's own users and groups (a segment
/// of root's would be locked by root's right). Throws Refusal.
void check_ipc_owners(const IpcImages& images, const std::set<uint32_t>& uids, const std::set<uint32_t>& gids);

class IpcRestorer {
 public:
  /// This process has an IPC namespace of its own from now on, as those that it forks; others join it. Once, whatever
  /// is called first.
  void enter();
  bool entered() const { return static_cast<bool>(home_); }
  /// Back to where it came from, so that nobody but the tree is in there.
  void leave();

  /// The segment `id`, empty, and its memory to be filled. It is not attached. Throws Error.
  Fd make_segment(int id, const SegmentMaker& maker);
  void remove_segment(int id);
  /// Everything but segments, which make_segment() made, and their attributes. `trusted`: else nothing is made that the
  /// owner could not have. Throws Error, Refusal.
  void make_objects(const IpcImages& images, bool trusted);
  /// When the tree has attached what it wants: segments that were removed are again.
  void finish() const;

 private:
  Fd home_;
  std::vector<int> destroyed_;
  bool trusted_ = false;
  std::optional<img::ipc_var_entry> last_;  ///< settings that must not hold before
};

/// In a process that becomes task `pid`: what it has done with SEM_UNDO is undone when it ends. No value changes.
/// Throws Error.
void make_undos(const IpcImages& images, pid_t pid);
/// Later, when all processes have done that: it is who did something last to those semaphores of which the images say
/// so.
void touch_semaphores(const IpcImages& images, pid_t pid);

}  // namespace migrate
