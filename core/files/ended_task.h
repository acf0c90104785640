// A task that has ended, under a pid of choice, for as long as this lives: files of /proc of one that is gone can be
// opened then.
#pragma once

#include <sys/types.h>

namespace migrate {

class EndedTask {
 public:
  /// Throws Error if the pid is taken.
  explicit EndedTask(pid_t pid);
  ~EndedTask();
  EndedTask(const EndedTask&) = delete;
  EndedTask& operator=(const EndedTask&) = delete;

 private:
  pid_t pid_;
};

}  // namespace migrate
