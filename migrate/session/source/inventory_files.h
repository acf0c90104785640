// The files of a running tree, and by whose right its tasks have them: what the destination must have.
#pragma once

#include <sys/stat.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/procfs.h"
#include "core/files/early_look.h"
#include "core/files/fdinfo.h"
#include "core/files/file_locks.h"
#include "migration.pb.h"

namespace migrate {

/// Numbers of credentials. Those of a table that was sent stay.
class CredentialTable {
 public:
  CredentialTable() = default;
  explicit CredentialTable(const wire::Check& sent);
  uint32_t number(const FileCredentials& who);
  void write(wire::Check& check) const;

 private:
  std::map<FileCredentials, uint32_t> numbers_;
};

/// Numbers of the credentials of a task's threads: what one has open, all have.
using HolderNumbers = std::set<uint32_t>;

class FileNeeds {
 public:
  /// `with_uses`: the destination shall decide who may open what.
  explicit FileNeeds(bool with_uses) : with_uses_(with_uses) {}

  /// `maps`: /proc/PID/maps.
  void add_mappings(const std::string& maps, const HolderNumbers& holders);
  /// Executable, working and root folder.
  void add_links(const ProcDir& task, const HolderNumbers& holders);
  /// Descriptor `fd`, if `link` is a path. Returns its type and bits, 0 for others.
  mode_t add_descriptor(const ProcDir& task, int fd, const std::string& link, const HolderNumbers& holders);
  /// A bound Unix socket.
  void add_socket(const std::string& path, const struct stat& st, const HolderNumbers& holders);
  /// Takes away what was checked before, unless it is written, locked or held in another way now.
  void leave_out(const wire::Check& known);
  /// Adds all to `check`, and the paths of those that are written to `writable`.
  void describe(wire::Check& check, std::vector<std::string>& writable) const;

 private:
  using Uses = std::map<std::pair<FileUse, uint32_t>, HolderNumbers>;
  struct Need {
    bool mapped = false;
    bool writable = false;
    bool own_content = true;  ///< of the program's or the system's, and not the kernel's
    std::vector<FileLock> locks;
    Uses uses;
  };
  /// What is made at the destination.
  struct Made {
    struct stat st {};
    Uses uses;
  };
  Need* need(const std::string& path);
  void use(Uses& uses, FileUse how, uint32_t flags, const HolderNumbers& holders) const;
  void add_deleted(const std::string& link, const struct stat& st, const HolderNumbers& holders);
  static void describe_uses(const Uses& uses, wire::Check::File& file);
  static bool describe_file(const std::string& path, const Need& need, wire::Check::File& file);
  static bool known_uses(const Uses& uses, const wire::Check::File& file);

  bool with_uses_;
  std::map<std::string, Need> needs_;
  std::map<std::pair<std::string, ino_t>, Made> made_;
};

}  // namespace migrate
