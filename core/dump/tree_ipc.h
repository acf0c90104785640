// The System V objects of a tree that is dumped (core/ipc/README.md).
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "core/base/procfs.h"
#include "core/image/image_set.h"
#include "core/ipc/whose_objects.h"
#include "core/task/core_image.h"

namespace migrate {

class TreeIpc {
 public:
  /// Of a running tree. Throws Refusal for what cannot be moved, or where it cannot be told what is the tree's.
  static void preflight(const std::vector<ProcDir>& tasks);

  /// Just before the tree is stopped: who waits in calls.
  void look_around(const std::vector<ProcDir>& tasks);
  /// Of the stopped tree: finds its objects, and writes their images if it has any, or a namespace of its own.
  void describe(const std::vector<ProcDir>& tasks, const ImagePids& pids, ImageSet& images);

  /// The restored tree has to have an IPC namespace of its own.
  bool own_namespace() const { return own_; }
  /// Of the tree's segments, in bytes.
  std::map<int, uint64_t> segment_sizes() const;
  /// The memory of segments that nobody has attached. Once.
  std::map<int, Fd> take_unattached() { return std::move(unattached_); }
  /// Objects that stay when the tree is gone, since they are in a namespace of others.
  std::vector<IpcObject> left_behind() const;

 private:
  bool own_ = false, alone_ = false;
  WaitedFor waits_, others_wait_;
  std::optional<UndoReader> undo_reader_;
  std::vector<IpcObject> objects_;
  std::map<int, Fd> unattached_;
};

}  // namespace migrate
