#include "core/files/task_paths.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include <cstring>
#include <deque>

#include "core/files/paths.h"

namespace migrate {
namespace {

constexpr int kMaxLinks = 40;  ///< as the kernel's (include/linux/namei.h, MAXSYMLINKS)
constexpr uint32_t kFuse = 0x65735546;

std::deque<std::string> components(const std::string& path) {
  std::deque<std::string> parts;
  for (size_t at = 0; at <= path.size();) {
    const size_t slash = std::min(path.find('/', at), path.size());
    if (slash != at) parts.push_back(path.substr(at, slash - at));
    at = slash + 1;
  }
  return parts;
}

bool changed_by_root_alone(const struct statx& st) {
  // An access control list that lets others write shows in the bits of the group.
  return st.stx_uid == 0 && (st.stx_mode & (S_IWGRP | S_IWOTH)) == 0;
}

bool is_link(const struct statx& st) { return (st.stx_mode & S_IFMT) == S_IFLNK; }

/// Empty if it was done, else why not.
std::string try_with(Right right, const std::function<void(Right)>& work) {
  try {
    work(right);
    return {};
  } catch (const Denied& e) {
    return e.what();
  } catch (const Error& e) {
    if (e.code() != EACCES && e.code() != EPERM) throw;
    return std::strerror(e.code());
  }
}

}  // namespace

TaskPaths::TaskPaths(int root, bool by_root) : root_(root), by_root_(by_root) {
  const FileCredentials& self = acting_.self();
  by_root_ = by_root_ && self.uid == 0 && self.has(CAP_DAC_OVERRIDE);
}

void TaskPaths::become(const FileCredentials& who) {
  if (who == acting_.now()) return;
  folders_.clear();
  acting_.become(who);
}

void TaskPaths::be_self() {
  if (&acting_.now() == &acting_.self()) return;
  folders_.clear();
  acting_.be_self();
}

void TaskPaths::rest() {
  be_self();
  folders_.clear();
  root_folders_.clear();
  root_for_ = nullptr;
}

void TaskPaths::attempt(const Holders& holders, const std::string& what, const std::function<void(Right)>& work) {
  const Batch batch(*this);
  std::set<std::string> confined;
  for (const FileCredentials& who : holders)
    if (!who.root.empty()) confined.insert(who.root);
  if (confined != confined_) {
    folders_.clear();
    root_folders_.clear();
    root_for_ = nullptr;
    confined_ = std::move(confined);
  }
  std::string reason, by_root;
  const bool root_may = by_root_ && !holders.empty();
  const auto as_root = [&] {
    be_self();
    by_root = try_with(Right::root, work);
    return by_root.empty();
  };
  // What root opened for somebody comes in numbers, and changing rights takes longer than opening a file.
  const bool root_first = root_may && root_for_ == &holders;
  if (root_first && as_root()) return;
  for (const FileCredentials& who : holders) {
    become(who);
    const std::string why = try_with(Right::task, work);
    if (why.empty()) {
      root_for_ = nullptr;
      return;
    }
    if (reason.empty()) reason = "user " + std::to_string(who.uid) + " may not use here: " + why;
  }
  if (root_may && !root_first && as_root()) {
    root_for_ = &holders;
    return;
  }
  if (holders.empty()) reason = "no task has";
  throw Refusal(what + ", which " + reason + (by_root.empty() ? "" : ", nor may root in its stead: ") + by_root,
                "give that user the right to it at the destination, or have the program close it");
}

void TaskPaths::as_self(const std::function<void()>& work) {
  const FileCredentials before = acting_.now();
  const bool changed = &acting_.now() != &acting_.self();
  if (changed) acting_.be_self();
  try {
    work();
    if (changed) acting_.become(before);
  } catch (...) {
    folders_.clear();  // walked with rights that are no longer ours
    throw;
  }
}

Fd TaskPaths::open(Right right, const std::string& path, int flags) {
  if (right == Right::task) {
    Fd plain = try_open_plain(root_, path, flags | O_NOFOLLOW);
    if (plain) return plain;
    if (errno != ELOOP) throw Error("open", path, errno);
  }
  if (components(path).empty()) return find_folder(right, path);
  const SplitPath split = split_path(path);
  const Folder& in = folder(right, split.folder);
  Fd fd = try_open_plain(in.fd.get(), split.name, flags | O_NOFOLLOW);
  check(fd.get(), "open", path);
  // Whoever owns a file may have moved it into a shared folder, but a folder only if it may write to it.
  if (right == Right::root && in.shared) {
    const struct statx st = stat_opened(fd.get(), path);
    if ((st.stx_mode & S_IFMT) != S_IFDIR || !changed_by_root_alone(st))
      throw Denied("its folder can be changed by others than root");
  }
  return fd;
}

Fd TaskPaths::find_followed(Right right, const std::string& path) {
  if (right == Right::task) {
    Fd plain = try_open_plain(root_, path, O_PATH);
    if (plain) return plain;
    if (errno != ELOOP) throw Error("open", path, errno);
  }
  return walk(right, path, Last::followed).fd;
}

Fd TaskPaths::find_folder(Right right, const std::string& path) {
  if (right == Right::task) {
    Fd plain = try_open_plain(root_, path, O_PATH | O_DIRECTORY);
    if (plain) return plain;
    if (errno != ELOOP) throw Error("open", path, errno);
  }
  const Folder& found = folder(right, path);
  if (right == Right::root && found.shared) throw Denied("others than root can make files in " + path);
  return found.fd.dup();
}

const TaskPaths::Folder& TaskPaths::folder(Right right, const std::string& path) {
  auto& known = right == Right::root ? root_folders_ : folders_;
  const auto it = known.find(path);
  return it != known.end() ? it->second : known.emplace(path, walk(right, path, Last::folder)).first->second;
}

size_t TaskPaths::confined_components(const std::string& path) const {
  size_t most = 0;
  for (const std::string& root : confined_)
    if (path == root || path.starts_with(root + "/"))
      most = std::max(most, components(path.substr(root.size())).size());
  return most;
}

/// Step by step, since the kernel follows links of whomever.
TaskPaths::Folder TaskPaths::walk(Right right, const std::string& path, Last last) {
  std::vector<Folder> way;
  const auto from_root = [&] {
    way.clear();
    way.push_back(admit(right, Fd(check(::fcntl(root_, F_DUPFD_CLOEXEC, 0), "duplicate", "the root folder")), false));
  };
  from_root();
  std::deque<std::string> left = components(path);
  // Links on the way to that root folder come to stand before these.
  const size_t confined = confined_components(path);
  for (int links = 0; !left.empty();) {
    const std::string name = std::move(left.front());
    left.pop_front();
    const bool below_own_root = left.size() < confined;
    if (name == ".") continue;
    if (name == "..") {
      if (way.size() > 1) way.pop_back();
      continue;
    }
    const int here = way.back().fd.get();
    Fd next = try_open_plain(here, name, O_PATH | O_DIRECTORY | O_NOFOLLOW);
    if (next) {
      way.push_back(admit(right, std::move(next), way.back().shared));
      continue;
    }
    if (errno != ENOTDIR && errno != ELOOP) throw Error("open", path, errno);
    next = try_open_plain(here, name, O_PATH | O_NOFOLLOW);
    check(next.get(), "open", path);
    const struct statx st = stat_opened(next.get(), path);
    if (!is_link(st)) {
      if (last == Last::folder || !left.empty()) throw Error("open", path, ENOTDIR);
      if (right == Right::root && way.back().shared) throw Denied("its folder can be changed by others than root");
      return {std::move(next), false};
    }
    // A link there is the jail's, and leads from our root, not from its.
    if (below_own_root) throw Denied("the path leads through a link in a root folder that a task has of its own");
    if (++links > kMaxLinks) throw Error("open", path, ELOOP);
    check_link(right, here, st, path);
    const std::string text = read_link_at(next.get(), "");
    if (text.starts_with('/')) from_root();
    const std::deque<std::string> more = components(text);
    left.insert(left.begin(), more.begin(), more.end());
  }
  return std::move(way.back());
}

void TaskPaths::check_link(Right right, int folder, const struct statx& link, const std::string& path) const {
  const struct statx st = stat_opened(folder, path);
  if (on_kernel_file_system(folder)) throw Denied("the path leads through a link of the kernel's");
  if (changed_by_root_alone(st)) return;
  if (right == Right::task && link.stx_uid == acting_.now().uid) return;
  throw Denied("the path leads through a link that user " + std::to_string(link.stx_uid) + " can change");
}

/// A folder on the way.
TaskPaths::Folder TaskPaths::admit(Right right, Fd fd, bool in_shared) {
  if (right == Right::task) return {std::move(fd), false};
  const struct statx st = stat_opened(fd.get(), "a folder");
  if (file_system(fd.get(), st) != FileSystem::ordinary)
    throw Denied("it is on a file system of the kernel's or of a user's");
  if (changed_by_root_alone(st)) return {std::move(fd), false};
  if (!in_shared && st.stx_uid == 0 && (st.stx_mode & S_ISVTX) != 0) return {std::move(fd), true};
  throw Denied("a folder on the way can be changed by others than root");
}

TaskPaths::FileSystem TaskPaths::file_system(int fd, const struct statx& st) {
  const auto [it, fresh] = file_systems_.try_emplace({st.stx_dev_major, st.stx_dev_minor}, FileSystem::ordinary);
  if (!fresh) return it->second;
  struct statfs fs {};
  check(::fstatfs(fd, &fs), "ask for the file system of", "a file");
  if (static_cast<uint32_t>(fs.f_type) == kFuse) it->second = FileSystem::fuse;
  if (on_kernel_file_system(fd)) it->second = FileSystem::kernel;
  return it->second;
}

void TaskPaths::check_kind(Right right, int fd, const struct statx& st, uint32_t flags) {
  const FileSystem where = file_system(fd, st);
  if (where == FileSystem::ordinary) return;
  if (right == Right::root) throw Denied("it is on a file system of the kernel's or of a user's");
  if (where == FileSystem::fuse) return;
  // Who is root opens what it likes.
  const FileCredentials& self = acting_.self();
  if (acting_.now().uid == 0 && (self.capabilities & ~acting_.now().capabilities) == 0) return;
  if ((flags & O_PATH) != 0 || (st.stx_mode & S_IFMT) == S_IFDIR) return;
  constexpr uint32_t kReadableByAll = S_IRUSR | S_IRGRP | S_IROTH;
  const bool read_only = (flags & O_ACCMODE) == O_RDONLY;
  if (read_only && (st.stx_mode & kReadableByAll) == kReadableByAll) return;
  throw Denied("it is a file of the kernel's, of which only those are opened that everybody may read");
}

bool TaskPaths::may(int fd, int access) {
  return ::syscall(SYS_faccessat2, fd, "", access, AT_EMPTY_PATH | AT_EACCESS) == 0;
}

}  // namespace migrate
