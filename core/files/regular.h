// Dumping files that have a path: regular files, directories, character devices, and the paths of FIFOs. A file that
// lost its path becomes a ghost: its content travels in the images.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/files/open_file.h"

namespace migrate {

/// Owners of the files of REG entries: an image of our own (proto/ext/ext.proto, FileOwner).

/// Throws Refusal for deleted files that cannot travel with the images. Needs link and st only.
void check_ghost(const OpenFile& file, const FileDumpOptions& options);

class RegularDumper {
 public:
  explicit RegularDumper(DumpContext& context) : context_(context) {}
  /// Removes links made for --link-remap unless keep_links() was called.
  ~RegularDumper();
  /// Emits a REG entry under `file.id`.
  void dump(const OpenFile& file);
  void keep_links() { links_.clear(); }

 private:
  enum class Found { linked, ghost, elsewhere };
  struct Place {
    Found found;
    std::string path;
  };
  Place locate(const OpenFile& file);
  bool leads_to(const OpenFile& file, const std::string& path);
  const Fd& root_of(const ProcDir& task);
  void add_ghost(const OpenFile& file);
  void write_ghost(const OpenFile& file, uint32_t ghost_id);
  void add_link(const OpenFile& file, const std::string& path);
  void add_remap(uint32_t file_id, uint32_t remap_id, int type);

  DumpContext& context_;
  struct Root {
    Fd fd;
    std::string prefix;  ///< of paths as we see them, that is not part of paths below fd
  };
  std::map<pid_t, Root> roots_;
  std::map<InodeKey, uint32_t> ghosts_;
  std::vector<std::pair<Fd, std::string>> links_;  ///< made by us: folder, name
};

}  // namespace migrate
