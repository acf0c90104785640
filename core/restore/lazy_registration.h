// Pages that come when the tree runs, in the coordinator: the memory that they are missing in is registered, and the
// launcher gets the userfaultfds.
#pragma once

#include <sys/types.h>

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"
#include "core/memory/page_runs.h"
#include "core/restore/shared_memory.h"
#include "core/restore/task_image.h"

namespace migrate {

/// What a shell has made for its task (make_lazy_userfaultfd()).
struct LazyUserfaultfds {
  Fd own, shared;  ///< shared: none if it may have no shared memory that comes late
};

/// Its userfaultfds are closed with it.
class LazyRegistration {
 public:
  /// `launcher`: its socket. All outlive it. `userfaultfds`: by task, in the tree's numbers.
  LazyRegistration(int launcher, std::span<const TaskImage> tasks, const PagesByMemory& missing,
                   std::map<pid_t, LazyUserfaultfds> userfaultfds)
      : launcher_(launcher), tasks_(tasks), missing_(missing), userfaultfds_(std::move(userfaultfds)) {}

  /// A task's private memory, when nothing of ours writes any more to pages that may be absent.
  void register_private(const TaskImage& task) const;
  /// Shared memory, when all tasks are as they will be. Throws Corrupt if pages are missing that nobody would wait for.
  void register_shared(const SharedMemory& shared) const;

 private:
  using Places = std::map<uint64_t, uint64_t>;  ///< of objects among all, by id

  int userfaultfd(const TaskImage& task, Fd LazyUserfaultfds::*which) const;
  void check_awaited() const;
  std::vector<const SharedMemory::Object*> find_objects(const SharedMemory& shared) const;
  PageSet register_mappings(const TaskImage& task, const Places& places) const;
  void hand_over(const SharedMemory::Object& object, uint64_t place) const;

  const int launcher_;
  const std::span<const TaskImage> tasks_;
  const PagesByMemory& missing_;
  const std::map<pid_t, LazyUserfaultfds> userfaultfds_;
};

}  // namespace migrate
