#include "core/files/ghost_restore.h"

#include <sys/time.h>

#include "core/files/open_flags.h"
#include "core/files/paths.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

constexpr uint32_t kSetId = S_ISUID | S_ISGID;

/// Folders of a path that are gone, there again for as long as this lives.
class Folders {
 public:
  Folders(TaskPaths& paths, Right right, const std::string& path) : paths_(paths), right_(right) {
    last_ = reach(path);
  }
  ~Folders() {
    for (auto it = made_.rbegin(); it != made_.rend(); ++it)
      ::unlinkat(it->first.get(), it->second.c_str(), AT_REMOVEDIR);
  }
  Folders(const Folders&) = delete;
  Folders& operator=(const Folders&) = delete;
  int get() const { return last_.get(); }

 private:
  Fd reach(const std::string& path) {
    try {
      return paths_.find_folder(right_, path);
    } catch (const Error& e) {
      if (e.code() != ENOENT || path == "/" || path == ".") throw;
    }
    const SplitPath split = split_path(path);
    Fd above = reach(split.folder);
    check(::mkdirat(above.get(), split.name.c_str(), 0700), "make the deleted folder", path);
    Fd folder = try_open_plain(above.get(), split.name, O_PATH | O_DIRECTORY | O_NOFOLLOW);
    made_.emplace_back(std::move(above), split.name);
    check(folder.get(), "open", path);
    // Whoever can change the folder above may have put another in its place.
    const struct statx st = stat_cached(folder.get(), "", AT_EMPTY_PATH, path);
    if (st.stx_uid != paths_.now().uid) throw Denied("somebody put another folder in the place of " + path);
    return folder;
  }

  TaskPaths& paths_;
  Right right_;
  std::vector<std::pair<Fd, std::string>> made_;
  Fd last_;
};

void write_chunks(ImageReader& reader, int fd, uint64_t size, const std::string& what) {
  img::ghost_chunk_entry chunk;
  while (reader.next(chunk)) {
    if (chunk.off() > size || chunk.len() > size - chunk.off()) throw Corrupt(what, "a chunk lies beyond the end");
    pwrite_full(fd, reader.raw(chunk.len()), chunk.off(), what);
  }
}

std::string octal(uint32_t mode) {
  char text[16];
  std::snprintf(text, sizeof text, "%04o", mode & 07777);
  return text;
}

/// By descriptor: the magic link leads to what was opened, whatever bears its name now.
void set_owner_and_mode(int fd, const img::ghost_file_entry& g, const std::string& path) {
  const std::string self = fd_link(fd);
  const struct statx st = stat_cached(fd, "", AT_EMPTY_PATH, path);
  if (st.stx_uid != g.uid() || st.stx_gid != g.gid())
    check(::fchownat(AT_FDCWD, self.c_str(), g.uid(), g.gid(), 0), "set the owner of", path);
  check(::chmod(self.c_str(), g.mode() & 07777), "set the mode of", path);
  // Who is not in the group loses its set-id bit without an error.
  if ((stat_cached(fd, "", AT_EMPTY_PATH, path).stx_mode & 07777) != (g.mode() & 07777))
    throw Error("set the mode of", path, EPERM);
}

}  // namespace

void check_set_ids(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid, const Holders& holders) {
  if ((mode & kSetId) == 0 || (mode & S_IFMT) == S_IFDIR) return;
  for (const FileCredentials& who : holders)
    if (who.may_set_id(mode, uid, gid)) return;
  throw Refusal("the deleted file " + path + " of user " + std::to_string(uid) + " and group " + std::to_string(gid) +
                    " with set-id bits (mode " + octal(mode) + "), which no task that has it open could make",
                "have the program close it");
}

GhostRestorer::Image GhostRestorer::read(uint32_t ghost_id, const std::string& path) const {
  char name[32];
  std::snprintf(name, sizeof name, "ghost-file-%x.img", ghost_id);
  auto reader = images_.read(name, magic::kGhostFile);
  img::ghost_file_entry g;
  if (!reader || !reader->next(g)) throw Corrupt("the image folder", std::string(name) + " is missing or empty");
  Image image{std::move(*reader), g};
  if (image.type() != S_IFREG && image.type() != S_IFIFO && image.type() != S_IFDIR)
    throw Refusal("the deleted file " + path, "only regular files, folders and FIFOs can be restored");
  return image;
}

void GhostRestorer::check(uint32_t ghost_id, const std::string& path, const Holders& holders) const {
  const img::ghost_file_entry g = read(ghost_id, path).entry;
  check_set_ids(path, g.mode(), g.uid(), g.gid(), holders);
}

const Fd& GhostRestorer::get(uint32_t ghost_id, const std::string& path, const Holders& holders) {
  const auto it = made_.find(ghost_id);
  if (it != made_.end()) return it->second;
  check(ghost_id, path, holders);
  Image image = read(ghost_id, path);
  Fd fd;
  paths_.attempt(holders, "the deleted file " + path, [&](Right right) {
    fd = make(ghost_id, right, image, path);
    if (image.type() == S_IFREG) fill(fd.get(), image, path);
    if (const auto has = attributes_.find(ghost_id); has != attributes_.end())
      set_extended_attributes(fd_link(fd.get()), has->second, "the deleted file " + path);
    give(fd.get(), image.entry, path);
  });
  // No writer stays: a program cannot run from a file that somebody may write to (ETXTBSY, PR_SET_MM_EXE_FILE's
  // EACCES).
  fd = reopen(fd.get(), O_PATH, path);
  return made_.emplace(ghost_id, std::move(fd)).first->second;
}

Fd GhostRestorer::take_prepared(uint32_t file_id) {
  auto ready = prepared_.extract(file_id);
  return ready.empty() ? Fd() : std::move(ready.mapped());
}

Fd GhostRestorer::make(uint32_t ghost_id, Right right, const Image& image, const std::string& path) {
  const SplitPath split = split_path(path);
  const Folders folder(paths_, right, split.folder);
  // The maker's own may get a name again, as any O_TMPFILE file can.
  Fd fd = image.type() == S_IFREG ? make_tmpfile(ghost_id, folder.get(), image.entry.uid() == paths_.now().uid) : Fd();
  if (!fd) fd = make_named(ghost_id, image.type(), folder.get(), split.name);
  // Nobody else has a hand on it: it has no name, cannot get one, and was never the owner's to open.
  const struct statx st = stat_cached(fd.get(), "", AT_EMPTY_PATH, path);
  if (st.stx_nlink != 0 || st.stx_uid != paths_.now().uid || (st.stx_mode & S_IFMT) != image.type())
    throw Denied("somebody put another file in its place");
  return fd;
}

Fd GhostRestorer::make_tmpfile(uint32_t ghost_id, int folder, bool linkable) {
  const auto [from, to] = by_ghost_.equal_range(ghost_id);
  for (auto it = from; it != to; ++it) {
    const auto entry = entries_.find(it->second);
    if (entry == entries_.end() || entry->second.type() != img::fd_types::REG) continue;
    const uint32_t flags = entry->second.reg().flags();
    if (!made_as_tmpfile(flags) || (flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_RDONLY) continue;
    // The rest is set when the content is in: appending or aligned writes would not put it in its place.
    const uint32_t kept = flags & (O_ACCMODE | O_SYNC | O_NOATIME | O_TMPFILE | O_NOFOLLOW);
    // Not every file system has it.
    Fd fd = try_open_plain(folder, ".", static_cast<int>(kept) | (linkable ? 0 : O_EXCL), 0600);
    if (fd) prepared_[it->second] = fd.dup();
    return fd;
  }
  return {};
}

Fd GhostRestorer::make_named(uint32_t ghost_id, mode_t type, int folder, const std::string& wanted) {
  std::string name = wanted;
  Fd fd;
  const auto create = [&] {
    if (type == S_IFDIR) return ::mkdirat(folder, name.c_str(), 0700) == 0;
    if (type == S_IFIFO) return ::mknodat(folder, name.c_str(), S_IFIFO | 0600, 0) == 0;
    fd = try_open_plain(folder, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    return static_cast<bool>(fd);
  };
  bool made = create();
  for (int n = 0; !made && errno == EEXIST && n < 100; ++n) {
    // The name was taken again: any name will do, since it goes at once.
    name = ".migrate-ghost-" + std::to_string(::getpid()) + "-" + std::to_string(n);
    made = create();
  }
  if (!made) throw Error("make the deleted file", wanted, errno);
  if (type != S_IFREG) fd = try_open_plain(folder, name, O_PATH | O_NOFOLLOW);
  if (fd && type == S_IFREG) prepare_named(ghost_id, folder, name, fd);
  // Without a name from here on: whoever opens it does so through /proc/self/fd.
  ::unlinkat(folder, name.c_str(), type == S_IFDIR ? AT_REMOVEDIR : 0);
  migrate::check(fd.get(), "open the deleted file", wanted);
  return fd;
}

void GhostRestorer::prepare_named(uint32_t ghost_id, int folder, const std::string& name, const Fd& made) {
  const InodeKey inode = inode_of(stat_cached(made.get(), "", AT_EMPTY_PATH, name));
  const auto [from, to] = by_ghost_.equal_range(ghost_id);
  for (auto it = from; it != to; ++it) {
    const auto entry = entries_.find(it->second);
    if (entry == entries_.end() || entry->second.type() != img::fd_types::REG) continue;
    const uint32_t flags = entry->second.reg().flags();
    if ((flags & O_NOFOLLOW) == 0) continue;
    const int how = (flags & O_PATH) != 0 ? O_PATH | O_CLOEXEC : open_flags(flags);
    Fd named = try_open_plain(folder, name, how | O_NOFOLLOW);
    if (named && inode_of(stat_cached(named.get(), "", AT_EMPTY_PATH, name)) == inode)
      prepared_[it->second] = std::move(named);
  }
}

void GhostRestorer::fill(int fd, Image& image, const std::string& path) {
  // By offset: the description may be the task's own, whose position must stay.
  const img::ghost_file_entry& g = image.entry;
  if (!g.chunks()) return pwrite_full(fd, image.content.rest(), 0, path);
  const auto size = static_cast<uint64_t>(g.size());
  if (size > INT64_MAX) throw Corrupt("the image of the deleted file " + path, "its size is impossible");
  write_chunks(image.content, fd, size, path);
  migrate::check(::ftruncate(fd, static_cast<off_t>(size)), "set the size of", path);
}

/// Owner, mode and times. What the maker may not set, root does, unless root must do nothing for it: a file without a
/// name serves nobody but those who had it, and its set-id bits were checked.
void GhostRestorer::give(int fd, const img::ghost_file_entry& g, const std::string& path) {
  try {
    set_owner_and_mode(fd, g, path);
  } catch (const Error& e) {
    if (e.code() != EPERM || !paths_.by_root()) throw;
    paths_.as_self([&] { set_owner_and_mode(fd, g, path); });
  }
  if (!g.has_mtim()) return;
  const timespec times[2] = {
      {static_cast<time_t>(g.atim().tv_sec()), static_cast<long>(g.atim().tv_usec() % 1'000'000 * 1000)},
      {static_cast<time_t>(g.mtim().tv_sec()), static_cast<long>(g.mtim().tv_usec() % 1'000'000 * 1000)}};
  const std::string self = fd_link(fd);
  paths_.as_self([&] { ::utimensat(AT_FDCWD, self.c_str(), times, 0); });
}

}  // namespace migrate
