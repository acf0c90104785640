// Opening files by their path again, by the right of those who hold them (core/files/task_paths.h).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/files/file_owners.h"
#include "core/files/found_file.h"
#include "core/files/ghost_restore.h"
#include "core/files/open_file.h"
#include "core/files/task_paths.h"
#include "core/files/terminal.h"

namespace migrate {

class RegularRestorer {
 public:
  /// `entries`, `owners` and `paths` must outlive this.
  RegularRestorer(const ImageSet& images, const std::map<uint32_t, img::file_entry>& entries, const FileOwners& owners,
                  TaskPaths& paths, int terminal);
  /// Opens with `flags` (only those that a description keeps). `mapped`: it must be as long as it was.
  Fd open(const img::reg_file_entry& entry, uint32_t flags, const Holders& holders, bool mapped = false);
  /// A working folder, or (`as_root`) a root folder, to be entered: O_PATH. A root folder other than ours is entered by
  /// the right of root if the task could not change to it itself.
  Fd open_folder(const img::reg_file_entry& entry, const Holders& holders, bool as_root);
  /// `use` with what the path leads to, checked against the entry (O_PATH), by the right of a holder who may.
  /// `any_kind`: also what no restore opens; it must stay what it is, a path.
  void with_found(const img::reg_file_entry& entry, const Holders& holders, const std::function<void(int)>& use,
                  bool any_kind = false);
  /// Refusal if the file is a deleted one that must not come into being.
  void check_ghost(const img::reg_file_entry& entry, const Holders& holders) const;
  bool has_ghosts() const { return !ghosts_.empty(); }
  /// Removes names that --link-remap made for the dump.
  void remove_links(std::vector<std::string>& failures);

 private:
  struct Remap {
    uint32_t id;
    bool ghost;
  };
  struct Link {
    std::string path;
    Holders holders;
  };
  const Remap* remap_of(const img::reg_file_entry& entry) const;
  /// Where it is: its own path, or the name that --link-remap gave it.
  std::string path_of(const img::reg_file_entry& entry);
  FileFacts facts_of(const img::reg_file_entry& entry) const;
  Fd open_found(Right right, const img::reg_file_entry& entry, Fd found, const std::string& path, uint32_t flags);
  Fd under_old_name(Right right, Fd found, const std::string& path, const std::string& old_path);

  const std::map<uint32_t, img::file_entry>& entries_;
  const FileOwners& owners_;
  TaskPaths& paths_;
  GhostRestorer ghosts_;
  CommandTerminal terminal_;
  std::map<uint32_t, Remap> remaps_;
  std::map<uint32_t, Link> links_;
  std::map<uint32_t, pid_t> ended_;  ///< files of /proc of tasks that are gone, by file id
};

}  // namespace migrate
