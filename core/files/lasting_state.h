// What no dump takes and a running program may have for a moment at any time: connections that are not accepted yet,
// descriptors on their way of kinds that are not moved so, epolls that watch what was closed under its number. Before a
// move it is refused if it lasts.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/files/epoll.h"
#include "core/files/open_file.h"
#include "core/files/unix_diag.h"

namespace migrate {

class LastingStates {
 public:
  /// Throws Refusal for a descriptor on its way that no dump takes.
  using CheckWaiting = std::function<void(const OpenFile&)>;
  /// `tasks` must outlive this.
  LastingStates(const std::vector<ProcDir>& tasks, CheckWaiting check)
      : tasks_(tasks), check_waiting_(std::move(check)) {}
  /// A Unix socket, each once, of network namespace `netns`.
  void see_socket(const OpenFile& file, const UnixSocketInfo& info, uint64_t netns);
  /// Those of the descriptors of `task` that are epolls. `task` must outlive this.
  void see_epolls(const ProcDir& task, std::span<const int> epolls);
  /// An inotify instance: events that its program has not read.
  void see_events(const OpenFile& file);
  /// Waits for a moment if something was seen. Throws Refusal for what is still there then.
  void finish();

 private:
  /// What is read once a look.
  struct Lists {
    using Sockets = std::map<uint32_t, UnixSocketInfo>;
    std::map<uint64_t, Sockets> sockets;                                   ///< by network namespace
    std::map<std::pair<pid_t, int>, std::map<uint32_t, uint32_t>> epolls;  ///< by task and fd: how often what number
  };
  /// nullopt: it is gone. Throws Error if the task is.
  using Look = std::function<std::optional<Refusal>(Lists&)>;

  /// Whether what waits for a listener of the tree can be moved as it is: it is the tree's, too, and has sent nothing.
  bool waits_well(uint32_t client, const Lists::Sockets& all) const;
  /// Whether the listener that it waits for is the tree's.
  bool waits_inside(uint32_t client, const Lists::Sockets& all) const;
  bool full() const;
  void doubt(Look look);
  bool some_task_has(const OpenFile& file) const;
  std::optional<Refusal> refused_on_its_way(const ProcDir& task, int fd, const std::string& who) const;
  bool watched(const Holder& holder, int number) const;
  bool open_elsewhere(const EpollSlot& slot, uint64_t inode) const;

  const std::vector<ProcDir>& tasks_;
  CheckWaiting check_waiting_;
  std::vector<Look> doubts_;
  std::vector<Holder> epolls_;
  std::set<uint32_t> unix_;  ///< inodes of the tree's Unix sockets
};

}  // namespace migrate
