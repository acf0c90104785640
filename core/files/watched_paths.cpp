#include "core/files/watched_paths.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <sstream>
#include <thread>

#include "core/base/procfs.h"
#include "core/files/paths.h"

namespace migrate {
namespace {

/// Of a file at hand; `inotify` is who watches it.
OpenFile watched(const OpenFile& inotify, Fd fd) {
  OpenFile file;
  file.proc = inotify.proc;
  file.fd = inotify.fd;
  file.waits_at = inotify.waits_at;
  file.link = read_link_at(AT_FDCWD, fd_link(fd.get()));
  file.st = stat_opened(fd.get(), file.link);
  file.info.flags = O_PATH;
  file.ours = std::move(fd);
  return file;
}

/// In a thread with a working folder of its own: the call takes no O_PATH descriptor but that folder, and opening the
/// mount's folder in another way would be an event for whoever watches it.
Fd open_handle(int mount, const InotifyWatch& watch) {
  std::vector<std::byte> bytes(sizeof(file_handle) + watch.handle.size());
  auto* handle = reinterpret_cast<file_handle*>(bytes.data());
  handle->handle_bytes = static_cast<unsigned>(watch.handle.size());
  handle->handle_type = watch.handle_type;
  std::memcpy(bytes.data() + sizeof(file_handle), watch.handle.data(), watch.handle.size());
  Fd fd;
  std::thread([&] {
    if (::unshare(CLONE_FS) == 0 && ::fchdir(mount) == 0)
      fd = Fd(::open_by_handle_at(AT_FDCWD, handle, O_PATH | O_NOFOLLOW | O_CLOEXEC));
  }).join();
  return fd;
}

/// Blanks and the like stand as "\040" in mountinfo.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 3 >= text.size()) {
      plain += text[i];
      continue;
    }
    plain += static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8));
    i += 3;
  }
  return plain;
}

bool is(const struct statx& st, const InotifyWatch& watch) {
  return st.stx_ino == watch.inode && (st.stx_dev_major << 20 | st.stx_dev_minor) == watch.device;
}

}  // namespace

std::vector<WatchedPaths::Mount>& WatchedPaths::mounts_of(const ProcDir& task) {
  const auto [it, fresh] = mounts_.try_emplace(task.pid());
  if (!fresh) return it->second;
  const Fd root = task.open("root", O_PATH | O_DIRECTORY);
  std::istringstream lines(task.read("mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    // "36 35 98:0 /mnt1 /mnt2 rw,noatime ..." (proc(5))
    std::istringstream words(line);
    std::string id, parent, device, below, point;
    unsigned major = 0, minor = 0;
    words >> id >> parent >> device >> below >> point;
    if (std::sscanf(device.c_str(), "%u:%u", &major, &minor) != 2) continue;
    Mount mount{major << 20 | minor, unescaped(point), {}};
    mount.fd = try_open_below(root.get(), mount.point, O_PATH);
    it->second.push_back(std::move(mount));
  }
  return it->second;
}

/// Whether it has a path, or lost it in a way that is known how to deal with.
bool WatchedPaths::usable(const OpenFile& file) {
  return regular_.leads_to(file, file.link) || file.link.ends_with(" (deleted)");
}

std::optional<OpenFile> WatchedPaths::by_handle(const OpenFile& inotify, const InotifyWatch& watch) {
  for (const Mount& mount : mounts_of(*inotify.proc)) {
    if (mount.device != watch.device || !mount.fd) continue;
    Fd fd;
    if (stat_opened(mount.fd.get(), mount.point).stx_ino == watch.inode) fd = mount.fd.dup();
    if (!fd && !watch.handle.empty()) fd = open_handle(mount.fd.get(), watch);
    if (!fd) continue;
    // Below a mount of a part of the file system it may have no path.
    OpenFile file = watched(inotify, std::move(fd));
    if (file.st.stx_ino == watch.inode && usable(file)) return file;
  }
  return std::nullopt;
}

/// Among what the task has open: file systems without handles, and files whose path the kernel has forgotten.
std::optional<OpenFile> WatchedPaths::among_known(const OpenFile& inotify, const InotifyWatch& watch) {
  std::vector<std::string> links{"cwd", "root", "exe"};
  for (const int fd : inotify.proc->descriptors()) links.push_back("fd/" + std::to_string(fd));
  for (const std::string& link : links) {
    if (!inotify.proc->link(link).starts_with("/")) continue;
    if (!is(stat_cached(inotify.proc->fd(), link, 0, "a file"), watch)) continue;
    OpenFile file = watched(inotify, inotify.proc->open(link, O_PATH));
    if (is(file.st, watch) && usable(file)) return file;
  }
  return std::nullopt;
}

OpenFile WatchedPaths::find(const OpenFile& inotify, const InotifyWatch& watch) {
  if (auto file = by_handle(inotify, watch)) return std::move(*file);
  if (auto file = among_known(inotify, watch)) return std::move(*file);
  throw Refusal(inotify.who() + ", an inotify instance with watch " + std::to_string(watch.wd) + " on inode " +
                    std::to_string(watch.inode) + " of device " + std::to_string(watch.device >> 20) + ":" +
                    std::to_string(watch.device & 0xfffff) + ", to which the kernel tells no path",
                "have the program remove that watch");
}

}  // namespace migrate
