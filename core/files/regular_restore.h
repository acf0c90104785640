// Opening files by their path again, and giving ghosts (files without a path) a short life in their old folder.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/files/open_file.h"
#include "core/files/restore_files.h"
#include "core/files/terminal.h"
#include "images/ghost-file.pb.h"

namespace migrate {

class RegularRestorer {
 public:
  /// `entries` must outlive this.
  RegularRestorer(const ImageSet& images, const std::map<uint32_t, img::file_entry>& entries,
                  const FileRestoreOptions& options);
  /// What the path leads to, checked against the entry, as an O_PATH descriptor.
  Fd find(const img::reg_file_entry& entry);
  /// Opens with `flags` (only those that a description keeps).
  Fd open(const img::reg_file_entry& entry, uint32_t flags);
  /// Removes names that --link-remap made for the dump.
  void remove_links(std::vector<std::string>& failures);
  int root() const { return root_.get(); }

 private:
  struct Remap {
    uint32_t id;
    bool ghost;
  };
  const Fd& ghost(uint32_t ghost_id, const std::string& path);
  Fd make_ghost(uint32_t ghost_id, const std::string& path);
  /// With O_TMPFILE, as the description in `prepared_` for the entry that was opened so; empty if it is none of those.
  Fd make_tmpfile(uint32_t ghost_id, int folder);
  Fd make_named(uint32_t ghost_id, mode_t type, int folder, const std::string& name);
  void fill_ghost(int fd, const img::ghost_file_entry& g, ImageReader& reader, const std::string& path);
  Fd find_linked(const img::reg_file_entry& entry, uint32_t remap_id);
  void check_found(const img::reg_file_entry& entry, const struct statx& st) const;

  const ImageSet& images_;
  const std::map<uint32_t, img::file_entry>& entries_;
  CommandTerminal terminal_;
  Fd root_;
  std::map<uint32_t, Remap> remaps_;
  std::map<uint32_t, Fd> ghosts_;
  std::multimap<uint32_t, uint32_t> by_ghost_;  ///< ghost id → file ids
  /// Descriptions with flags that only an open by name (O_NOFOLLOW) or of the folder (O_TMPFILE) gives, by file id.
  std::map<uint32_t, Fd> prepared_;
  std::map<uint32_t, std::string> links_;
};

}  // namespace migrate
