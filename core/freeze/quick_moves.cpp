#include "core/freeze/quick_moves.h"

#include <unistd.h>

#include <string>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/freezer_cgroup.h"

namespace migrate {
namespace {

void move_to_where_we_are(int procs) noexcept {
  const std::string self = std::to_string(::getpid());
  [[maybe_unused]] const ssize_t written = ::pwrite(procs, self.data(), self.size(), 0);
}

}  // namespace

QuickMoves::QuickMoves(std::chrono::milliseconds at_most) noexcept : until_(Clock::now() + at_most) {
  try {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  } catch (const std::exception&) {  // then it takes its time
    ended_ = true;
    first_move_.count_down();
  }
}

void QuickMoves::run(const std::stop_token& stop) noexcept {
  try {
    const Fd procs = open_path(FreezerCgroup::own_folder() + "/cgroup.procs", O_WRONLY);
    move_to_where_we_are(procs.get());  // the wait, while the tree still runs
    first_move_.count_down();
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested() && Clock::now() < until_.load()) {
      never_.wait_for(lock, stop, std::chrono::milliseconds(1), [] { return false; });
      move_to_where_we_are(procs.get());
    }
  } catch (const std::exception&) {  // there is no freezer
    first_move_.count_down();
  }
  ended_ = true;
}

bool QuickMoves::extend(std::chrono::milliseconds at_most) noexcept {
  until_ = Clock::now() + at_most;
  return !ended_;
}

}  // namespace migrate
