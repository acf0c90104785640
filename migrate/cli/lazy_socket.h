// CRIU's socket between `restore --lazy-pages` and `lazy-pages`: a stream socket in the work directory, over which the
// userfaultfds of the restored tasks come. For each task an i32 pid, then its userfaultfd; at last the u32 kFinished.
// CRIU's restore lets its tree run then, whatever becomes of its daemon. Between two of ours it goes on:
//
//   daemon    u8 kHello, when the restore has come (CRIU's restore reads nothing, CRIU's daemon sends nothing)
//   restore   for each task its pid with a pidfd; kFinished
//   daemon    u8 kGo, when it has everything that it needs to bring pages; else it hangs up, and nothing is started
//   restore   u8 kRuns, when the tree runs
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"

namespace migrate::cli {

struct LazyTask {
  pid_t pid = 0;  ///< as the images number it
  Fd userfaultfd;
  Fd process;  ///< pidfd; none if the restore is not ours
};

/// A restore that has handed over its tasks.
class LazyRestore {
 public:
  LazyRestore(std::vector<LazyTask> tasks, Fd peer, bool ours)
      : tasks_(std::move(tasks)), peer_(std::move(peer)), state_(ours ? State::ready : State::not_ours) {}
  std::vector<LazyTask> take_tasks() { return std::move(tasks_); }
  /// The connection, with which another process can go on.
  int fd() const { return peer_.get(); }
  /// It may let its tree run. Throws Error if it is not there any more.
  void go();
  enum class State {
    not_ours,  ///< its tree runs, as far as anybody can tell
    ready,     ///< the tree waits for go(), or will run in a moment
    runs,
    gone,  ///< it ended without having said that the tree runs
  };
  /// What it has said by now; `wait` until it is no more `ready`.
  State state(bool wait);

 private:
  std::vector<LazyTask> tasks_;
  Fd peer_;
  State state_;
};

/// Listens on `lazy-pages.socket` in a folder; the name is removed with it. Only root and our own user may connect.
class LazyListener {
 public:
  /// Throws Refusal if a living daemon has the socket; one that a dead daemon left is replaced.
  explicit LazyListener(const std::string& folder);
  /// Goes on with the socket of another one, whose process is gone.
  LazyListener(const std::string& folder, Fd socket);
  LazyListener(const LazyListener&) = delete;
  LazyListener& operator=(const LazyListener&) = delete;
  ~LazyListener();
  /// Waits for a restore, and for all tasks that it hands over. Throws Error if it hangs up before it has finished.
  LazyRestore receive() { return *receive(-1); }
  /// nullopt: `over` became readable, or its other end was closed, before one has come.
  std::optional<LazyRestore> receive(int over);
  /// For poll(2): readable when somebody comes.
  int fd() const { return socket_.get(); }
  /// Then: like receive(). nullopt: it was nobody who restores.
  std::optional<LazyRestore> receive_now();

 private:
  Fd accept() const;

  Fd folder_, socket_;
};

/// The restore's side.
class LazyConnection {
 public:
  /// Throws Refusal if nobody listens there.
  explicit LazyConnection(const std::string& folder);
  void send(pid_t pid, int userfaultfd, Fd process);
  /// All tasks were sent: returns when the daemon can bring pages. Throws Error if it cannot: then nothing may run.
  void finish();
  /// The tree runs.
  void tell_runs() noexcept;

 private:
  Fd socket_;
  std::vector<std::pair<pid_t, Fd>> processes_;
};

}  // namespace migrate::cli
