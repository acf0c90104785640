// How the source's session waits for several things at once: the peer, its guardian, the user.
#pragma once

#include <chrono>
#include <map>

#include "migrate/session/loop/event_loop.h"

namespace migrate {

/// One thread. Descriptors that are watched become non-blocking (event_loop.h).
class Waiter {
 public:
  using milliseconds = std::chrono::milliseconds;

  /// `fd` counts in every wait() from here on; before it is closed, forget() it. No effect for a negative one.
  void watch(int fd);
  void forget(int fd);
  /// Until a watched descriptor is readable or hung up, at most `time`.
  void wait(milliseconds time);
  /// Whether that is why the last wait() ended.
  bool ready(int fd) const;

 private:
  struct Watched {
    EventLoop::Watch watch;
    bool ready = false;
  };
  EventLoop loop_;
  std::map<int, Watched> watched_;  ///< gone before the loop
};

/// Watches a descriptor for as long as it lives.
class WatchedFor {
 public:
  WatchedFor(Waiter& waiter, int fd) : waiter_(waiter), fd_(fd) { waiter_.watch(fd_); }
  ~WatchedFor() { waiter_.forget(fd_); }
  WatchedFor(const WatchedFor&) = delete;
  WatchedFor& operator=(const WatchedFor&) = delete;

 private:
  Waiter& waiter_;
  const int fd_;
};

}  // namespace migrate
