// Dumping files that have a path: regular files, directories, character devices, and the paths of FIFOs. A file that
// lost its path becomes a ghost: its content travels in the images.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/files/file_credentials.h"
#include "core/files/open_file.h"

namespace migrate {

/// Throws Refusal for deleted files that cannot travel with the images. Needs link and st only.
void check_ghost(const OpenFile& file, const FileDumpOptions& options);
/// Throws Refusal for a file that was removed under its name, and has another one, unless that is provided for.
void check_name(const OpenFile& file, const FileDumpOptions& options);

/// Names that --link-remap makes begin with it.
inline constexpr char kLinkPrefix[] = "link_remap.";

class RegularDumper {
 public:
  explicit RegularDumper(DumpContext& context) : context_(context) {}
  /// Removes links made for --link-remap unless keep_links() was called.
  ~RegularDumper();
  /// Emits a REG entry under `file.id`.
  void dump(const OpenFile& file) { dump(file, true); }
  /// The same of a file that is only watched: its size may be any.
  void dump_watched(const OpenFile& file) { dump(file, false); }
  /// Whether `path`, as we see it, leads to the file for the task.
  bool leads_to(const OpenFile& file, const std::string& path);
  void keep_links() noexcept { links_.clear(); }

 private:
  enum class Found { linked, ghost, elsewhere, ended };
  struct Place {
    Found found;
    std::string path;
    std::string name;  ///< elsewhere: in the same folder; none: not known
  };
  void dump(const OpenFile& file, bool with_size);
  Place locate(const OpenFile& file);
  const Fd& root_of(const ProcDir& task);
  void add_ghost(const OpenFile& file);
  void write_ghost(const OpenFile& file, uint32_t ghost_id);
  bool is_of_ended_task(const OpenFile& file) const;
  /// `name`: another one of it there; none: it is given one.
  void add_link(const OpenFile& file, const std::string& path, std::string name);
  std::string link_beside(const OpenFile& file, const std::string& path, uint32_t id);
  void add_remap(uint32_t file_id, uint32_t remap_id, int type);

  DumpContext& context_;
  struct Root {
    Fd fd;
    std::string prefix;  ///< of paths as we see them, that is not part of paths below fd
  };
  std::map<pid_t, Root> roots_;
  std::map<InodeKey, uint32_t> ghosts_;
  struct Link {
    Fd folder;
    std::string name;
    FileCredentials who;  ///< by whose right it was made
  };
  std::vector<Link> links_;
};

}  // namespace migrate
