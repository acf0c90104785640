#include "migrate/session/guardian/task_limit.h"

#include <string>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "images/pstree.pb.h"

namespace migrate {
namespace {

std::string counted(uint64_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

[[noreturn]] void refuse(const std::string& count, uint64_t needed, uint64_t most) {
  throw Refusal("the tree has " + count + ", and the receiver takes " + std::to_string(most) + " at most",
                "receive with --max-tasks " + std::to_string(needed) + " if that is what it should have");
}

}  // namespace

void enforce_task_limit(uint64_t most, const TreeLayout& layout) {
  const uint64_t tasks = layout.tasks.size();
  if (most != 0 && tasks > most) refuse(counted(tasks, "task"), tasks, most);
}

void enforce_task_limit(uint64_t most, const ImageSet& images) {
  if (most == 0) return;
  auto reader = images.read("pstree.img", magic::kPstree);
  uint64_t tasks = 0, threads = 0;
  img::pstree_entry task;
  while (reader && reader->next(task)) {
    ++tasks;
    if (task.threads_size() > 1) threads += static_cast<uint64_t>(task.threads_size()) - 1;
    task.Clear();
  }
  if (tasks + threads > most)
    refuse(counted(tasks, "task") + " with " + counted(threads, "more thread"), tasks + threads, most);
}

}  // namespace migrate
