#include "core/files/unix_file.h"

#include <dirent.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <memory>
#include <optional>

#include "core/files/paths.h"
#include "core/files/unix_address.h"
#include "core/files/unix_socket.h"

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE (0x89E0 + 0)
#endif

namespace migrate {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

bool leads_to(const OpenFile& file, const std::string& path, const InodeKey& inode) {
  const Fd root = file.proc->open("root", O_PATH | O_DIRECTORY);
  const Fd there = try_open_below(root.get(), path, O_PATH | O_NOFOLLOW);
  return there && inode_of(stat_cached(there.get(), "", AT_EMPTY_PATH, path)) == inode;
}

/// Another name of a file in a folder, where it was linked and its first name removed.
std::optional<std::string> find_in(const std::string& folder, const InodeKey& inode) {
  const Fd top = open_path(folder, O_RDONLY | O_DIRECTORY);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(::fcntl(top.get(), F_DUPFD_CLOEXEC, 0)), &::closedir);
  while (const dirent* e = dir ? ::readdir(dir.get()) : nullptr) {
    if (e->d_ino != inode.ino) continue;
    const std::string name = e->d_name;
    if (inode_of(stat_cached(top.get(), name, AT_SYMLINK_NOFOLLOW, name)) == inode) return folder + "/" + name;
  }
  return std::nullopt;
}

}  // namespace

std::string printable_name(std::string name) {
  if (name.empty()) return "an unnamed one";
  if (name.front() == '\0') name.front() = '@';
  return name.substr(0, name.find('\0'));
}

bool has_unix_file(const UnixSocketInfo& info) {
  if (info.name.empty() || abstract_name(info.name)) return false;
  return info.state == kSocketListen || info.type == SOCK_DGRAM || info.state == kSocketClose;
}

UnixFile find_unix_file(const OpenFile& file, const UnixSocketInfo& info) {
  const std::string name = printable_name(info.name);
  const Fd path(check(::ioctl(file.ours.get(), SIOCUNIXFILE), "open the file of Unix socket", name));
  UnixFile found;
  found.st = stat_cached(path.get(), "", AT_EMPTY_PATH, name);
  found.deleted = found.st.stx_nlink == 0;
  const InodeKey inode = inode_of(found.st);
  const bool relative = name.front() != '/';
  // The kernel follows a renamed file.
  std::string full = read_link_at(AT_FDCWD, fd_link(path.get()));
  const bool unlinked = full.ends_with(kDeleted);
  if (unlinked) full.resize(full.size() - kDeleted.size());
  const bool below = full.ends_with("/" + name);
  if (relative && below)
    found.folder = full.size() == name.size() + 1 ? "/" : full.substr(0, full.size() - name.size() - 1);
  if (relative && !below && found.deleted) found.folder = split_path(full).folder;
  if (found.deleted) return found;
  // A task with a root folder of its own means that one.
  const bool by_name = relative ? below && !unlinked : file.proc->link("root") == "/" && leads_to(file, name, inode);
  if (by_name) return found;
  if (unlinked) {
    const auto other = find_in(split_path(full).folder, inode);
    if (!other)
      throw Refusal(file.who() + ", the Unix socket " + name + ", whose file has another name now that cannot be found",
                    "have the program bind it again");
    full = *other;
  }
  found.moved = std::move(full);
  return found;
}

}  // namespace migrate
