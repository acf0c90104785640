// Deleted files that are still open ("ghosts"): made again, from the images, as files without a name.
#pragma once

#include <map>
#include <string>

#include "core/files/extended_attributes.h"
#include "core/files/task_paths.h"
#include "core/image/image_set.h"
#include "images/fdinfo.pb.h"
#include "images/ghost-file.pb.h"

namespace migrate {

/// Refusal for a deleted file with set-id bits that none of those who hold it could have set.
void check_set_ids(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid, const Holders& holders);

class GhostRestorer {
 public:
  /// `entries` and `paths` must outlive this.
  GhostRestorer(const ImageSet& images, const std::map<uint32_t, img::file_entry>& entries, TaskPaths& paths)
      : images_(images), entries_(entries), paths_(paths), attributes_(read_ghost_attributes(images)) {}
  /// The file `file_id` is this ghost. Before anything is made.
  void add(uint32_t ghost_id, uint32_t file_id) { by_ghost_.emplace(ghost_id, file_id); }
  bool empty() const { return by_ghost_.empty(); }
  /// check_set_ids() of one.
  void check(uint32_t ghost_id, const std::string& path, const Holders& holders) const;
  /// Made on first use, by a holder in its old folder, or by root where that is root's alone.
  const Fd& get(uint32_t ghost_id, const std::string& path, const Holders& holders);
  /// A description with flags that only an open by name (O_NOFOLLOW) or of the folder (O_TMPFILE) gives; empty if the
  /// file needs none. After get(); once.
  Fd take_prepared(uint32_t file_id);

 private:
  struct Image {
    ImageReader content;
    img::ghost_file_entry entry;
    mode_t type() const { return entry.mode() & S_IFMT; }
  };
  Image read(uint32_t ghost_id, const std::string& path) const;
  Fd make(uint32_t ghost_id, Right right, const Image& image, const std::string& path);
  Fd make_tmpfile(uint32_t ghost_id, int folder, bool linkable);
  Fd make_named(uint32_t ghost_id, mode_t type, int folder, const std::string& name);
  void prepare_named(uint32_t ghost_id, int folder, const std::string& name, const Fd& made);
  void fill(int fd, Image& image, const std::string& path);
  void give(int fd, const img::ghost_file_entry& g, const std::string& path);

  const ImageSet& images_;
  const std::map<uint32_t, img::file_entry>& entries_;
  TaskPaths& paths_;
  const std::map<uint32_t, ExtendedAttributes> attributes_;  ///< by ghost id
  std::multimap<uint32_t, uint32_t> by_ghost_;               ///< ghost id → file ids
  std::map<uint32_t, Fd> made_;                              ///< by ghost id
  std::map<uint32_t, Fd> prepared_;                          ///< by file id
};

}  // namespace migrate
