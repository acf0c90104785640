// What is known of a tree's memory while it still runs: enough to make room for its pages elsewhere.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/types.h"
#include "core/ipc/sysv_objects.h"
#include "core/memory/page_io.h"

namespace migrate {

struct TreeLayout {
  /// Private memory that may hold pages: a mapping, or neighbours that differ in protection only.
  struct Area {
    uint64_t start = 0, end = 0;                     ///< page-aligned, not empty
    bool huge_pages = false, no_huge_pages = false;  ///< madvise(2)
    bool grows_down = false, no_reserve = false;
    std::string file;     ///< the path of the file of which it has copies of pages; empty: anonymous memory
    uint64_t offset = 0;  ///< in it, of `start`
    bool operator==(const Area&) const = default;
  };
  struct Task {
    pid_t pid = 0, ppid = 0, pgid = 0, sid = 0;  ///< as the images will number them; ppid of the root: 0
    int terminal = -1;                           ///< its controlling terminal is /dev/pts/N; -1: none
    int exit_signal = SIGCHLD;                   ///< what its parent gets at its end (clone(2)); 0: nothing
    std::vector<Area> areas;                     ///< ascending, disjoint
    bool operator==(const Task&) const = default;
  };
  /// Shared memory objects (anonymous shared mappings, memfds, System V segments) that were sent before the tree was
  /// stopped.
  struct Object {
    uint64_t id = 0;  ///< shmid
    uint64_t bytes = 0;
    bool memfd = false;
    std::string name;                          ///< of a memfd, as given to memfd_create(2)
    std::optional<SegmentMaker> segment = {};  ///< System V shared memory
    bool operator==(const Object&) const = default;
  };
  std::vector<Task> tasks;  ///< living ones; parents before children, the root first
  std::vector<Object> objects;
  bool operator==(const TreeLayout&) const = default;
};

/// What it is for a zombie, which has sent its own: that it had one tells whom wait(2) finds (__WCLONE).
inline int exit_signal_of_ended(int signal) { return signal == SIGCHLD ? SIGCHLD : 0; }

/// Pages that were sent and exist no more: at the destination they must read as if never written.
struct PageDiscard {
  MemoryId memory;
  uint64_t address = 0, pages = 0;
  bool operator==(const PageDiscard&) const = default;
};

}  // namespace migrate
