#include "core/restore/task_image.h"

#include <sys/resource.h>

#include <algorithm>

#include "core/image/magic.h"

namespace migrate {
namespace {

img::core_entry read_core(const ImageSet& images, pid_t tid) {
  const std::string name = image_name("core", static_cast<uint64_t>(tid));
  img::core_entry core;
  images.need(name, magic::kCore, core);
  if (core.mtype() != img::core_entry::X86_64 || !core.has_thread_info() || !core.has_thread_core())
    throw Corrupt(name, "it does not describe an x86-64 thread");
  check_credentials(core, name);
  if (core.thread_info().gpregs().mode() != img::NATIVE)
    throw Refusal("thread " + std::to_string(tid) + " runs 32-bit code", "this cannot be restored yet");
  if (core.thread_core().has_seccomp_mode() && core.thread_core().seccomp_mode() != img::disabled)
    throw Refusal("thread " + std::to_string(tid) + " has seccomp filters", "these cannot be restored yet");
  return core;
}

/// Without what stands in images that all tasks share.
TaskImage read_own(const ImageSet& images, const TaskNode& node) {
  TaskImage t;
  t.pid = node.pid;
  t.tids = node.threads;
  const auto id = static_cast<uint64_t>(node.pid);
  for (const pid_t tid : node.threads) t.cores.push_back(read_core(images, tid));
  // Those of the restoring process, a daemon of root's, are not the task's.
  if (t.core().tc().rlimits().rlimits_size() < static_cast<int>(RLIM_NLIMITS))
    throw Corrupt(image_name("core", id), "resource limits are missing");
  images.need(image_name("mm", id), magic::kMm, t.mm);
  images.need(image_name("fs", id), magic::kFs, t.fs);
  if (!images.get(image_name("ids", id), magic::kIds, t.ids)) {
    if (!t.core().has_ids()) throw Corrupt("the image folder", image_name("ids", id) + " is missing");
    t.ids = t.core().ids();
  }
  t.vmas = read_vmas(t.mm, node.pid, &t.guards);
  return t;
}

/// Those images are walked once for all tasks: for each, it would take a big tree seconds.
void add_shared(const ImageSet& images, std::span<TaskImage> tasks) {
  std::map<pid_t, TaskImage*> by_thread;
  for (TaskImage& t : tasks)
    for (const pid_t tid : t.tids) by_thread.emplace(tid, &t);
  if (auto reader = images.read("migrate-ext.img", magic::kMigrateExt)) {
    for (ext::ThreadExt e; reader->next(e); e.Clear()) {
      const auto task = by_thread.find(static_cast<pid_t>(e.tid()));
      if (task != by_thread.end()) task->second->extra.emplace(task->first, e);
    }
  }
  if (auto reader = images.read("filelocks.img", magic::kFileLocks)) {
    for (img::file_lock_entry e; reader->next(e); e.Clear()) {
      const auto task = by_thread.find(e.pid());
      if (task != by_thread.end() && task->second->pid == e.pid()) task->second->locks.push_back(e);
    }
  }
}

}  // namespace

TaskImage read_task(const ImageSet& images, const TaskNode& node) {
  TaskImage task = read_own(images, node);
  add_shared(images, std::span(&task, 1));
  return task;
}

std::vector<TaskImage> read_tasks(const ImageSet& images, const std::vector<TaskNode>& nodes) {
  std::vector<TaskImage> tasks;
  for (const TaskNode& node : nodes)
    if (!node.zombie) tasks.push_back(read_own(images, node));
  add_shared(images, tasks);
  return tasks;
}

}  // namespace migrate
