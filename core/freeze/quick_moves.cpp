#include "core/freeze/quick_moves.h"

#include <unistd.h>

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

QuickMoves::QuickMoves() noexcept {
  try {
    Fd procs = open_path(FreezerCgroup::own_folder() + "/cgroup.procs", O_WRONLY);
    move_to_where_we_are(procs.get());  // the wait, while the tree still runs
    thread_ = std::jthread([fd = std::move(procs)](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        move_to_where_we_are(fd.get());
        ::usleep(1000);
      }
    });
  } catch (const std::exception&) {  // then it takes its time
  }
}

}  // namespace migrate
