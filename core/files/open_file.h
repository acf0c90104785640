// The dump side's view of one open file description, and what all kinds share while they are described.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#undef sigmask  // an obsolete macro of <signal.h>, and a field of signalfd_entry

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/base/procfs.h"
#include "core/files/dump_files.h"
#include "core/files/fdinfo.h"
#include "images/fdinfo.pb.h"

namespace migrate {

/// An open file description of a task. `ours` is a duplicate of it: what is changed through it (flags, position, data)
/// is changed for the task.
struct OpenFile {
  const ProcDir* proc = nullptr;  ///< a task that has it, not owned
  int fd = -1;                    ///< its number there
  Fd ours;
  int domain = -1;   ///< of a socket (AF_*), once `ours` is there
  std::string link;  ///< target of /proc/PID/fd/N
  /// Of one in a message that nobody has received (`fd` is -1 then): who() of the socket where it waits.
  std::string waits_at{};
  struct statx st {};
  FdInfo info;
  uint32_t id = 0;  ///< in files.img

  /// Gives it `ours`, with the `st` and the domain that it tells.
  void take(Fd duplicate);
  /// "task 42 has fd 7"; of one that waits also that it does
  std::string who() const;
  mode_t type() const { return st.stx_mode & S_IFMT; }
  int access() const { return static_cast<int>(info.flags) & O_ACCMODE; }
};

/// (device, inode), as statx(2) gives them.
struct InodeKey {
  uint32_t major = 0, minor = 0;
  uint64_t ino = 0;
  auto operator<=>(const InodeKey&) const = default;
};
InodeKey inode_of(const struct statx& st);

/// statx(2) without asking a remote or FUSE server anew: a hanging file system must not hang us.
struct statx stat_cached(int dirfd, const std::string& path, int flags, std::string_view what);
/// The same of an open descriptor, O_PATH too; `what` is for an Error.
struct statx stat_opened(int fd, std::string_view what);

/// State of a dump shared by the kinds.
struct DumpContext {
  const FileDumpOptions& options;
  ImageSet& images;
  Logger& log;
  uint32_t last_file_id = 0;

  /// Who outside of the tree has the file open for writing, in words.
  std::function<std::optional<std::string>(const InodeKey&)> outside_writer{};
  /// Whether a pid of ours is a task of the tree.
  std::function<bool(pid_t)> in_tree{};
  std::function<pid_t(pid_t)> pid_in_tree{};  ///< a pid of ours as the tree's namespace numbers it; 0: not known
  /// Describes a descriptor that waits at a socket, whose who() that is, of a task; gives its id in files.img.
  std::function<uint32_t(const ProcDir& holder, Fd, const std::string& socket)> describe_waiting{};

  uint32_t new_id() { return ++last_file_id; }
  void emit(const img::file_entry& entry);
};

/// Owner and signal of O_ASYNC input (fcntl(2) F_GETOWN_EX, F_GETSIG, F_GETOWNER_UIDS).
void describe_owner(const OpenFile& file, img::fown_entry& out);

/// id, flags and owner, which nearly every kind has under the same names.
template <class Entry>
void describe_common(const OpenFile& file, Entry& entry) {
  entry.set_id(file.id);
  entry.set_flags(file.info.flags);
  describe_owner(file, *entry.mutable_fown());
}

/// The soft limit of open files becomes the hard one: a tree may have more sockets open than a shell allows us.
void raise_descriptor_limit();

/// A file_entry with its type and id set.
img::file_entry entry_of(img::fd_types type, uint32_t id);

}  // namespace migrate
