// In which order, and by whom, tasks are forked so that parents, sessions and process groups come out as they were.
// Plain values, no system calls: shell.cpp carries the plan out.
#pragma once

#include <sys/types.h>

#include <vector>

#include "core/image/image_set.h"
#include "core/memory/tree_layout.h"

namespace migrate {

/// One task of the tree with its part of the plan. Ids are those of the tree's pid namespace.
struct TaskNode {
  pid_t pid = 0, ppid = 0, pgid = 0, sid = 0;
  std::vector<pid_t> threads;  ///< the leader's first
  bool zombie = false;
  int exit_signal = SIGCHLD;  ///< clone(2); 0: none
  int terminal = -1;          ///< its controlling terminal is /dev/pts/N; -1: none, or one outside of the tree
  int parent = -1;            ///< index; -1 for the root
  std::vector<int> children;  ///< indices

  // The plan.
  bool new_session = false;    ///< calls setsid(2)
  bool before_setsid = false;  ///< is forked before its parent calls setsid
  pid_t session_helper = 0;    ///< is forked by a helper with this pid that leads its session, then exits
  bool new_group = false;      ///< setpgid(0, 0)
  pid_t join_group = 0;        ///< setpgid(0, it), 0: as inherited
  pid_t group_helper = 0;      ///< first forks a helper with this pid, which leads the group until all have joined
  int terminal_fd = -1;        ///< the coordinator's descriptor of `terminal`, for who begins the session
  bool drop_terminal = false;  ///< gives up the controlling terminal that it inherits from its session
};

/// Reads pstree.img: parents before children, the root first. Throws Corrupt.
std::vector<TaskNode> read_tree(const ImageSet& images);

/// The same from a layout, which may come from a peer: checked, its areas too. Throws Corrupt.
std::vector<TaskNode> read_tree(const TreeLayout& layout);

/// Fills in the plan. `inherit_outside`: a session and group that the root belongs to but that lies outside of the tree
/// is replaced by the one we run in (--shell-job in place); otherwise a helper leads it. Throws Refusal naming the
/// task for what cannot be built.
void plan_tree(std::vector<TaskNode>& tasks, bool inherit_outside);

/// What must be done so that shells which are the tree `have` become the tree `want`.
struct TreeChange {
  struct Gone {
    pid_t parent, pid;
  };
  std::vector<Gone> gone;     ///< children before their parents
  std::vector<bool> fresh;    ///< by index of `want`: is forked by its parent's shell
  std::vector<int> affected;  ///< indices of `want` that exist and fork, or change session or group
};
/// Fills in the plan of `want` for it. Throws Error with the reason if shells cannot change so: parents are for ever, a
/// session can only be begun, or inherited from the parent as it is now.
TreeChange plan_change(const std::vector<TaskNode>& have, std::vector<TaskNode>& want);

}  // namespace migrate
