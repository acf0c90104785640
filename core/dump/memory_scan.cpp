#include "core/dump/memory_scan.h"

namespace migrate {

void MemoryScan::begin(std::vector<Task> tasks, const MappingReader& reader) {
  // Standby's work must be copyable, which a promise is not.
  const auto results = std::make_shared<std::vector<std::promise<TaskMemory>>>(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) found_.emplace(tasks[i].proc->pid(), (*results)[i].get_future());
  end_ = thread_.begin([this, tasks = std::move(tasks), results, &reader] {
    for (size_t i = 0; i < tasks.size() && !given_up_; ++i) {
      try {
        (*results)[i].set_value(read_task_memory(*tasks[i].proc, reader, *tasks[i].foreseen));
      } catch (...) {
        (*results)[i].set_exception(std::current_exception());
      }
    }
  });
}

}  // namespace migrate
