// Restoring open files. The coordinator opens every open file description once; each shell then fetches duplicates with
// pidfd_getfd(2), so that what was shared stays shared.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/files/file_credentials.h"
#include "core/files/file_owners.h"
#include "core/files/socket_makers.h"
#include "core/image/image_set.h"
#include "images/creds.pb.h"

namespace migrate {

class TerminalPairs;

/// A memfd that was made, and filled, before the final images were there.
struct WarmMemfd {
  std::string name;
  Fd fd;
};

struct FileRestoreOptions {
  bool tcp_close = false;
  TerminalPairs* terminals = nullptr;  ///< pseudo-terminals that are there already; more are added
  /// Opens /dev/tty as a task whose controlling terminal has that number; empty: its slave is opened instead.
  std::function<Fd(uint32_t index, int flags)> open_controlling = {};
  int terminal = -1;  ///< takes the place of the images' terminal; -1: images that hold one are refused
  /// Until after_gate(), sockets are bound and listening but deaf (a drop-all filter; Unix names hidden), so that the
  /// tree's own accept(2) works from its first instruction and nobody outside gets an answer.
  bool hold_outside = true;
  std::string mark = ".migrate";  ///< hidden names begin with it (core/files/hidden_sockets.h)
  int root_fd = -1;               ///< paths are resolved below this folder (openat2 RESOLVE_IN_ROOT); -1: our own root
  /// Who has each descriptor table: files are opened with their credentials. nullopt: all is the caller's own.
  std::optional<std::map<uint32_t, Holders>> holders;
  /// What no holder may open may be opened by root, where root alone can have put it there (core/files/task_paths.h).
  bool by_root = true;
  /// Sockets and pipes belong to these only, and Unix sockets tell of no other peers (core/files/file_owners.h).
  std::optional<UserIds> owners;
  /// Makes Unix sockets in the processes of which their peers are told; empty: this one.
  SocketMaker make_sockets = {};
};

/// A file that no descriptor leads to: of a mapping, the executable, or a folder of a task.
struct WantedFile {
  enum class Use { mapped, work_folder, root_folder };
  uint32_t id = 0;
  int access = O_RDONLY;  ///< how a mapping needs it
  Use use = Use::mapped;
  Holders holders;
};

/// Lives in the coordinator (in the tree's mount, time and pid namespaces; single-threaded).
class FileRestorer {
 public:
  /// `warm`: memfds by shmid, taken for those of the images that have that name. Refusal for deleted files with set-id
  /// bits that their holders could not have made.
  FileRestorer(const ImageSet& images, const FileRestoreOptions& options, Logger& log,
               std::map<uint64_t, WarmMemfd> warm = {});
  ~FileRestorer();

  /// Opens the files of mappings, executables and folders (those O_PATH), in that order, with the credentials of their
  /// holders. Memfds give a descriptor of the object.
  std::vector<Fd> open_files(const std::vector<WantedFile>& wanted);
  /// Makes every memfd and gives its object by shmid, so that memory can fill it.
  const std::map<uint64_t, Fd>& shared_objects();
  /// Whether that one was warm.
  bool is_warm(uint64_t shmid) const;
  /// Opens all descriptions. Everything that can fail fails here or in open_files, before the gate. `dumped_at_ns`: the
  /// tree's CLOCK_MONOTONIC at the dump; timers have less left by what has passed since.
  void open_all(std::optional<int64_t> dumped_at_ns = {});
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
