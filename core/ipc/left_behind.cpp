#include "core/ipc/left_behind.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "core/base/deadline.h"

namespace migrate {
namespace {

/// A killed task's memory is given back a moment after its end.
constexpr std::chrono::milliseconds kForMemory{2000};

/// Numbers come again after some ten thousand others. Semaphores change when undo lists are worked off.
bool same(const IpcObject& a, const IpcObject& b) {
  const auto facts = [](const IpcObject& o) {
    return std::tuple(o.kind, o.id, o.key, o.cuid, o.cgid, o.changed, o.size, o.creator);
  };
  if (facts(a) != facts(b)) return false;
  return a.kind != IpcKind::queue || std::tuple(a.used_a, a.used_b) == std::tuple(b.used_a, b.used_b);
}

int remove(const IpcObject& o) {
  switch (o.kind) {
    case IpcKind::segment:
      return ::shmctl(o.id, IPC_RMID, nullptr);
    case IpcKind::semaphores:
      return ::semctl(o.id, 0, IPC_RMID);
    case IpcKind::queue:
      break;
  }
  return ::msgctl(o.id, IPC_RMID, nullptr);
}

/// Empty: it is gone.
std::string remove_one(const IpcObject& left, const Deadline& deadline) {
  for (;; ::usleep(1000)) {
    const std::vector<IpcObject> all = list_ipc_objects();
    const auto now =
        std::ranges::find_if(all, [&](const IpcObject& o) { return o.kind == left.kind && o.id == left.id; });
    if (now == all.end()) return {};
    const std::string stays = left.describe() + " of the tree that is gone stays: ";
    if (!same(*now, left)) return stays + "it is not as it was";
    if (now->attached != 0 && !deadline.passed()) continue;
    if (now->attached != 0) return stays + "somebody has attached it";
    return remove(left) == 0 ? "" : stays + std::strerror(errno);
  }
}

}  // namespace

std::vector<std::string> remove_left_behind(const std::vector<IpcObject>& objects) noexcept {
  std::vector<std::string> stay;
  const Deadline deadline = Deadline::in(kForMemory);
  for (const IpcObject& o : objects) {
    try {
      if (std::string what = remove_one(o, deadline); !what.empty()) stay.push_back(std::move(what));
    } catch (const std::exception& e) {
      stay.emplace_back(e.what());
    }
  }
  return stay;
}

}  // namespace migrate
