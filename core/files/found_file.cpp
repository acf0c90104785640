#include "core/files/found_file.h"

#include <linux/capability.h>

#include "core/files/devices.h"

namespace migrate {
namespace {

/// What root opens for a task must be what the task had, as far as can be told; the rest of it is check_found().
void check_same(const FileFacts& facts, const struct statx& st) {
  const mode_t type = st.stx_mode & S_IFMT;
  if (type == S_IFCHR && !stateless_device(st.stx_rdev_major, st.stx_rdev_minor)) throw Denied("it is a device");
  if (!facts.mode || (*facts.mode & 07777) != (st.stx_mode & 07777U))
    throw Denied("its mode is not what it was at the source");
  if (facts.owner && *facts.owner != std::pair(st.stx_uid, st.stx_gid))
    throw Denied("its owner is not who it was at the source");
}

}  // namespace

bool writes(uint32_t flags) { return (flags & O_PATH) == 0 && (flags & O_ACCMODE) != O_RDONLY; }

void check_found(const FileFacts& facts, const struct statx& st, uint32_t flags) {
  const mode_t type = st.stx_mode & S_IFMT;
  if (facts.mode && type != (*facts.mode & S_IFMT))
    throw Error(facts.text() + " is a file of another type than the one that the program had");
  const bool device = type == S_IFCHR && stateless_device(st.stx_rdev_major, st.stx_rdev_minor);
  const bool path_only = (flags & O_PATH) != 0;
  if (type != S_IFREG && type != S_IFDIR && type != S_IFIFO && !device && !path_only)
    throw Error(facts.text() + " is a device or socket that a restore does not open");
  const std::optional<uint64_t> wanted = facts.size ? facts.size : facts.least;
  if (type == S_IFREG && wanted && (facts.size ? *wanted != st.stx_size : *wanted > st.stx_size))
    throw Error(facts.text() + " has " + std::to_string(st.stx_size) + " bytes, but " + std::to_string(*wanted) +
                " where the program was; put the same file in its place");
}

Fd find_file(TaskPaths& paths, Right right, const FileFacts& facts, const std::string& path, uint32_t flags) {
  Fd found = paths.find(right, path);
  const struct statx st = stat_opened(found.get(), path);
  paths.check_kind(right, found.get(), st, flags);
  if (right == Right::root) check_same(facts, st);
  check_found(facts, st, flags);
  return found;
}

Fd find_folder_to_enter(TaskPaths& paths, Right right, const FileFacts& facts, const std::string& path, bool as_root) {
  Fd folder = find_file(paths, right, facts, path, O_PATH);
  const struct statx st = stat_opened(folder.get(), path);
  if ((st.stx_mode & S_IFMT) != S_IFDIR) throw Error("enter", path, ENOTDIR);
  if (right == Right::root) return folder;
  if (!TaskPaths::may(folder.get(), X_OK)) throw Denied("it may not enter it");
  // Programs with set-id bits believe what they find below their root folder.
  if (as_root && inode_of(st) != inode_of(stat_opened(paths.root(), "the root folder")) &&
      !paths.now().has(CAP_SYS_CHROOT))
    throw Denied("it may not make it its root folder");
  return folder;
}

Fd find_folder_to_make_in(TaskPaths& paths, Right right, const std::string& path) {
  Fd folder = paths.find_folder(right, path);
  if (right == Right::task && !TaskPaths::may(folder.get(), W_OK | X_OK))
    throw Denied("it may not make files in " + path);
  return folder;
}

}  // namespace migrate
