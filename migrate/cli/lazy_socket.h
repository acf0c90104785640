// CRIU's socket between `restore --lazy-pages` and `lazy-pages`: a stream socket in the work directory, over which the
// userfaultfds of the restored tasks come.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "core/base/fd.h"

namespace migrate::cli {

struct LazyTask {
  pid_t pid = 0;  ///< as the images number it
  Fd userfaultfd;
};

/// Listens on `lazy-pages.socket` in a folder; the name is removed with it. Only root and our own user may connect.
class LazyListener {
 public:
  /// Throws Refusal if a living daemon has the socket; one that a dead daemon left is replaced.
  explicit LazyListener(const std::string& folder);
  LazyListener(const LazyListener&) = delete;
  LazyListener& operator=(const LazyListener&) = delete;
  ~LazyListener();
  /// Waits for a restore, and for all tasks that it hands over. Throws Error if it hangs up before it has finished.
  std::vector<LazyTask> receive();
  /// Another process has the socket now: the name stays.
  void leave() noexcept { folder_.reset(); }

 private:
  Fd accept() const;

  Fd folder_, socket_;
};

/// The restore's side.
class LazyConnection {
 public:
  /// Throws Refusal if nobody listens there.
  explicit LazyConnection(const std::string& folder);
  void send(pid_t pid, int userfaultfd);
  /// All tasks were sent.
  void finish();

 private:
  Fd socket_;
};

}  // namespace migrate::cli
