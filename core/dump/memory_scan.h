// What the tasks of a stopped tree have in memory, found by a thread of ours while descriptors are described.
#pragma once

#include <atomic>
#include <future>
#include <map>
#include <utility>
#include <vector>

#include "core/base/standby.h"
#include "core/dump/task_memory.h"

namespace migrate {

/// To be made before the tree stops, and to go before it runs on.
class MemoryScan {
 public:
  /// A task, and what foresee_mappings() told of it; both must stay as they are until its memory was taken.
  struct Task {
    const ProcDir* proc;
    const std::vector<Vma>* foreseen;
  };

  MemoryScan() = default;
  MemoryScan(const MemoryScan&) = delete;
  MemoryScan& operator=(const MemoryScan&) = delete;
  /// Waits for the task that is at work; no other is begun.
  ~MemoryScan() { given_up_ = true; }

  /// Once; one after the other, in this order.
  void begin(std::vector<Task> tasks, const MappingReader& reader);
  /// Once a task. Throws what read_task_memory() threw.
  TaskMemory take(pid_t pid) { return found_.at(pid).get(); }

 private:
  std::atomic<bool> given_up_ = false;
  std::map<pid_t, std::future<TaskMemory>> found_;
  std::future<void> end_;
  Standby thread_;
};

}  // namespace migrate
