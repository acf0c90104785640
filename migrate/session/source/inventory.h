// What a running tree needs from its host, seen from outside and without touching it: the source's side of the checks.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"
#include "migration.pb.h"

namespace migrate {

struct Inventory {
  wire::Check check;
  std::vector<std::string> writable_files;  ///< for syncing
  std::set<std::string> asked;              ///< sockets and pipes that were looked into
};

/// `whole`: with what the destination should decide early, before anything is touched: who may open what there, and
/// what only a privilege can have given. `quick`: what only the source knows; the rest the restore is about to decide.
enum class InventoryDepth { whole, quick };

/// Reads /proc of the tree of `root`, and looks into its sockets and pipes. With `known`: only what is new since then.
Inventory take_inventory(Pid root, InventoryDepth depth, const Inventory* known = nullptr);
/// Adds what is new to `known`.
void extend_inventory(Inventory& known, const Inventory& news);

/// Files of ours beside the files that the tree writes, so that the destination can tell whether it sees the same file
/// system. They are gone when this object is.
class FileProbes {
 public:
  /// Adds probes to `check`. A folder where none can be made is left without (and the destination refuses the file).
  explicit FileProbes(wire::Check& check);
  ~FileProbes();
  FileProbes(const FileProbes&) = delete;
  FileProbes& operator=(const FileProbes&) = delete;

 private:
  FileProbes() = default;  ///< complete, so that a failure in the other constructor removes what was made
  std::pair<std::string, std::string> make(const std::string& folder);

  std::vector<std::pair<Fd, std::string>> made_;  ///< folder, name
};

/// Makes what the tree has written durable on the file systems.
void sync_files(const std::vector<std::string>& paths);

/// Refusal if moving the tree of `root` away would be undone or noticed: we descend from it, or it has a parent or a
/// supervisor that would see it exit. `may_notice`: the operator knows; `shell_job`: a shell's job may go.
void check_supervisor(Pid root, bool shell_job, bool may_notice);

}  // namespace migrate
