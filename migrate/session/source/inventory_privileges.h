// What of a running tree only a privilege can have given it, as far as it is seen from outside: for the destination's
// sentence (guardian/privileges.h), before anything is touched.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/files/file_owners.h"
#include "migrate/session/source/inventory_files.h"
#include "migration.pb.h"

namespace migrate {

/// The tasks that have a socket, a pipe or the like.
struct SocketHolder {
  int32_t task = 0;
  uint64_t held = 0;  ///< capabilities
};

/// The permitted capabilities of a task.
uint64_t held_capabilities(const StatusFields& status);
/// Scheduling, limits, oom_score_adj, queued signals and locked memory of one task, whose status and threads these are.
void add_privileges(const ProcDir& task, const StatusFields& status, std::span<const pid_t> threads, uint64_t held,
                    wire::Check& check);
/// What of its sockets, pipes, timers and interest lists. Each is looked into once, through a duplicate that is ours
/// for that moment.
class DescriptorPrivileges {
 public:
  /// `look`: whether they are looked into at all. `asked`: not those; null: none was yet.
  DescriptorPrivileges(bool look, const std::set<std::string>* asked) : look_(look), asked_(asked) {}

  /// Descriptor `fd` of `task`; `mode`: of a path. Throws Error if it was closed meanwhile.
  void add(const ProcDir& task, int fd, const std::string& link, mode_t mode, uint64_t held,
           const HolderNumbers& holders);
  const std::map<uint64_t, SocketHolder>& sockets() const { return sockets_; }
  /// Adds what was found, and the names of sockets to `files`. `ids`: whose the tree's tasks are. Returns those that
  /// were looked into.
  std::set<std::string> write(wire::Check& check, FileNeeds& files, const UserIds& ids) const;

 private:
  struct Facts {
    SocketHolder holder;
    HolderNumbers holders;
    std::vector<wire::Check::Privilege> found;
    std::string socket_name;  ///< bound, in the file system
    std::set<std::string> interfaces;
    std::optional<wire::Check::Port> port;  ///< of sockets that are in no table of /proc/net
    std::optional<PeerCredentials> peer;
    int fd = -1;  ///< in the first holder
  };
  void look_into(const ProcDir& task, int fd, const std::string& link, Facts& facts);
  const Fd& pidfd_of(pid_t task);

  bool look_;
  const std::set<std::string>* asked_;
  std::map<uint64_t, SocketHolder> sockets_;  ///< by inode
  std::map<std::string, Facts> facts_;        ///< by link; of timers and interest lists with task and number
  pid_t of_ = 0;
  Fd pidfd_;
};

/// A port that is bound.
void add_port_privilege(const SocketHolder& holder, uint32_t port, wire::Check& check);
/// As a visit told them.
void add_securebits(pid_t task, uint32_t bits, wire::Check& check);
/// The same as the images of the stopped tree tell.
void add_securebits(const ImageSet& images, wire::Check& check);
/// Drops from `news` what `known` has, or another of its tasks: most are alike.
void leave_out_privileges(const wire::Check& known, wire::Check& news);

}  // namespace migrate
