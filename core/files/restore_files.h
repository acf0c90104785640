// Restoring open files. The coordinator opens every open file description once; each shell then fetches duplicates with
// pidfd_getfd(2), so that what was shared stays shared.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/image/image_set.h"
#include "images/creds.pb.h"

namespace migrate {

/// A memfd that was made, and filled, before the final images were there.
struct WarmMemfd {
  std::string name;
  Fd fd;
};

struct FileRestoreOptions {
  bool tcp_close = false;
  int terminal = -1;  ///< takes the place of the images' terminal; -1: images that hold one are refused
  /// Until after_gate(), sockets are bound and listening but deaf (a drop-all filter; Unix names hidden), so that the
  /// tree's own accept(2) works from its first instruction and nobody outside gets an answer.
  bool hold_outside = true;
  std::string mark = ".migrate";  ///< hidden names begin with it (core/files/hidden_sockets.h)
  int root_fd = -1;               ///< paths are resolved below this folder (openat2 RESOLVE_IN_ROOT); -1: our own root
};

/// Lives in the coordinator (in the tree's mount, time and pid namespaces; single-threaded).
class FileRestorer {
 public:
  /// `warm`: memfds by shmid, taken for those of the images that have that name.
  FileRestorer(const ImageSet& images, const FileRestoreOptions& options, Logger& log,
               std::map<uint64_t, WarmMemfd> warm = {});
  ~FileRestorer();

  /// Opens the file of a mapping, exe, cwd or root by its id. `flags` overrides the entry's access mode if not -1.
  /// Memfds give a descriptor of the object.
  Fd open_file(uint32_t file_id, int flags = -1);
  /// Makes every memfd and gives its object by shmid, so that memory can fill it.
  const std::map<uint64_t, Fd>& shared_objects();
  /// Whether that one was warm.
  bool is_warm(uint64_t shmid) const;
  /// Opens all descriptions. Everything that can fail fails here or in open_file, before the gate. `elapsed_ns`: since
  /// the dump, on the tree's CLOCK_MONOTONIC; timers have so much less left.
  void open_all(uint64_t elapsed_ns = 0);
  /// file id → descriptor number in this process, for install_descriptors.
  const std::map<uint32_t, int>& opened() const;
  /// What the outside may see: ends the deafness, publishes Unix socket names. Never throws: what fails is logged and
  /// returned as text. Must come soon after the gate opens.
  std::vector<std::string> after_gate();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// In a shell: gives this process the descriptor table `files_id`, fetching each description from the coordinator, then
/// restores what belongs to numbers and owners (epoll interest lists, F_SETOWN/F_SETSIG). Descriptors of this process
/// that are in the way are the caller's to move first. `user`: of the task, whose the owner of a file must be.
void install_descriptors(const ImageSet& images, uint32_t files_id, int coordinator_pidfd,
                         const std::map<uint32_t, int>& opened, const img::creds_entry& user, Logger& log);
/// Throws Refusal for what FileRestorer would refuse for the images' sake, or could not open below `limit` descriptors.
void check_files_restorable(const ImageSet& images, size_t limit);

}  // namespace migrate
