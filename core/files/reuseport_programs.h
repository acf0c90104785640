// Programs that choose in a group of SO_REUSEPORT sockets (SO_ATTACH_REUSEPORT_CBPF, _EBPF; socket(7)). No call tells
// that there is one; a BPF iterator over the descriptors of a task sees it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <set>
#include <string>

#include "core/base/fd.h"

namespace migrate {

class ReuseportPrograms {
 public:
  /// nullopt where this kernel or our capabilities do not allow it. Takes 10 to 20 ms.
  static std::optional<ReuseportPrograms> open();
  /// The descriptors of task `pid` that are sockets in such a group. Throws Error.
  std::set<int> of(pid_t pid) const;

 private:
  explicit ReuseportPrograms(Fd program) : program_(std::move(program)) {}
  Fd program_;
};

/// Refuses them, of a tree that runs. Asks the kernel only if there is a socket of a group.
class ReuseportCheck {
 public:
  /// Throws Refusal in the words "`who` ...", of the descriptor `fd` of task `pid`; `socket`: a duplicate. Where
  /// nothing can be told, nothing is.
  void check(int socket, pid_t pid, int fd, const std::string& who);

 private:
  bool opened_ = false;
  std::optional<ReuseportPrograms> programs_;
  pid_t last_ = 0;
  std::set<int> found_;  ///< of that task
};

}  // namespace migrate
