#include "migrate/session/loop/waiter.h"

namespace migrate {

void Waiter::watch(int fd) {
  if (fd < 0 || watched_.contains(fd)) return;
  Watched& one = watched_[fd];
  try {
    one.watch = loop_.when_readable(fd, [&one] { one.ready = true; });
  } catch (...) {
    watched_.erase(fd);
    throw;
  }
}

void Waiter::forget(int fd) { watched_.erase(fd); }

void Waiter::wait(milliseconds time) {
  for (auto& [fd, one] : watched_) one.ready = false;
  const EventLoop::Watch limit = loop_.after(time, [] {});
  loop_.run_once();
}

bool Waiter::ready(int fd) const {
  const auto found = watched_.find(fd);
  return found != watched_.end() && found->second.ready;
}

}  // namespace migrate
