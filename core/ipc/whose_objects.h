// Which System V objects are a tree's, where it shares an IPC namespace with others: the kernel keeps no list of who
// uses what (README.md has the rule).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "core/base/procfs.h"
#include "core/ipc/sysv_objects.h"
#include "core/ipc/undo_lists.h"

namespace migrate {

/// Objects in whose calls a thread waits.
using WaitedFor = std::set<std::pair<IpcKind, int>>;

/// What is known of the tree.
struct IpcUsers {
  std::map<pid_t, int64_t> tree;     ///< living processes, as our /proc numbers them, and when each began
  std::set<uint32_t> users;          ///< the ids that they run as
  int64_t since = 0;                 ///< when the oldest of them began, seconds since 1970
  std::map<int, uint64_t> mappings;  ///< of segments: how many mappings the tree has
  bool exact = false;                ///< the tree stands still, so that these are all
  WaitedFor waits, others_wait;      ///< in the tree; outside of it
  std::vector<UndoList> undos;       ///< of the tree's processes
  std::map<int, std::vector<pid_t>> users_of_sets;  ///< of semaphore sets: who did something to each semaphore last
  bool alone = false;                               ///< nobody else is in the IPC namespace
};

/// Whether a process that is not the tree's has that number, and began before `used` (seconds since 1970).
using IsOutside = std::function<bool(pid_t pid, int64_t used)>;

/// Of all objects of a namespace those that are the tree's. Throws Refusal where others have a part in them, or where
/// nothing tells whose they are.
std::vector<IpcObject> pick_objects(const std::vector<IpcObject>& all, const IpcUsers& users, const IsOutside& outside);

/// Whether `tasks` are all who are in the root's IPC namespace. Other threads of ours that look at it do not count.
bool alone_in_ipc_namespace(const std::vector<ProcDir>& tasks);

/// What of it a tree shows, running or stopped. `mappings` and `exact` are the caller's to fill in.
IpcUsers look_at_ipc_users(const std::vector<ProcDir>& tasks);
/// Adds who waits: in the tree while it runs, outside of it at any time.
void look_for_waiters(const std::vector<ProcDir>& tasks, IpcUsers& users);
struct TreeObjects {
  std::vector<IpcObject> objects;
  std::vector<UndoList> undos;
};
/// The objects of `tasks` in their IPC namespace, by the rule above. `users` as looked at, with mappings;
/// `undo_reader`: none where that cannot be had, or there are no semaphores. Throws Refusal for what cannot be moved.
TreeObjects find_tree_objects(const std::vector<ProcDir>& tasks, IpcUsers users,
                              const std::optional<UndoReader>& undo_reader);

}  // namespace migrate
