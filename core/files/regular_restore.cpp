#include "core/files/regular_restore.h"

#include <sys/time.h>

#include "core/files/kinds.h"
#include "core/files/paths.h"
#include "core/image/magic.h"
#include "images/remap-file-path.pb.h"

namespace migrate {
namespace {

/// Flags that open(2) may see: nothing that creates or empties.
constexpr uint32_t kOpenFlags =
    O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_DIRECT | O_NOATIME | O_PATH | O_DIRECTORY;

/// O_TMPFILE holds O_DIRECTORY too, and both stay in the flags of the description.
constexpr uint32_t kTmpfile = O_TMPFILE;

bool made_as_tmpfile(uint32_t flags) { return (flags & kTmpfile) == kTmpfile; }

int open_flags(uint32_t flags) {
  // O_NONBLOCK: no waiting for the other end of a FIFO; the caller sets the wanted status flags afterwards.
  const uint32_t kept = made_as_tmpfile(flags) ? flags & ~static_cast<uint32_t>(O_DIRECTORY) : flags;
  return static_cast<int>(kept & kOpenFlags) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
}

/// Folders of a path that are gone, there again for as long as this lives.
class Folders {
 public:
  Folders(int root, const std::string& path) { last_ = reach(root, path); }
  ~Folders() {
    for (auto it = made_.rbegin(); it != made_.rend(); ++it)
      ::unlinkat(it->first.get(), it->second.c_str(), AT_REMOVEDIR);
  }
  Folders(const Folders&) = delete;
  Folders& operator=(const Folders&) = delete;
  int get() const { return last_.get(); }

 private:
  Fd reach(int root, const std::string& path) {
    Fd there = try_open_below(root, path, O_PATH | O_DIRECTORY);
    if (there || errno != ENOENT || path == "/" || path == ".") {
      check(there.get(), "open", path);
      return there;
    }
    const SplitPath split = split_path(path);
    Fd above = reach(root, split.folder);
    check(::mkdirat(above.get(), split.name.c_str(), 0700), "make the deleted folder", path);
    const int folder = above.get();
    made_.emplace_back(std::move(above), split.name);
    return Fd(check(::openat(folder, split.name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "open", path));
  }
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

}  // namespace

RegularRestorer::RegularRestorer(const ImageSet& images, const std::map<uint32_t, img::file_entry>& entries,
                                 const FileRestoreOptions& options)
    : images_(images),
      entries_(entries),
      terminal_(options.terminal >= 0
                    ? Fd(check(::fcntl(options.terminal, F_DUPFD_CLOEXEC, 0), "duplicate", "the terminal"))
                    : Fd()) {
  root_ = options.root_fd >= 0 ? Fd(check(::fcntl(options.root_fd, F_DUPFD_CLOEXEC, 0), "duplicate", "the root folder"))
                               : open_path("/", O_PATH | O_DIRECTORY);
  auto reader = images.read("remap-fpath.img", magic::kRemapFpath);
  img::remap_file_path_entry remap;
  while (reader && reader->next(remap)) {
    // Old images mark ghosts by the top bit of the id.
    constexpr uint32_t kOldGhostBit = uint32_t{1} << 31;
    const bool ghost =
        remap.has_remap_type() ? remap.remap_type() == img::remap_type::GHOST : (remap.remap_id() & kOldGhostBit) != 0;
    if (remap.has_remap_type() && remap.remap_type() == img::remap_type::PROCFS)
      throw Refusal("the images hold an open /proc file of a dead process", "it cannot be restored");
    remaps_[remap.orig_id()] = {remap.has_remap_type() ? remap.remap_id() : remap.remap_id() & ~kOldGhostBit, ghost};
    if (ghost) by_ghost_.emplace(remaps_[remap.orig_id()].id, remap.orig_id());
  }
}

void RegularRestorer::check_found(const img::reg_file_entry& entry, const struct statx& st) const {
  const mode_t type = st.stx_mode & S_IFMT;
  const std::string& name = entry.name();
  if (entry.has_mode() && type != (entry.mode() & S_IFMT))
    throw Error(name + " is a file of another type than the one that was dumped");
  const bool device = type == S_IFCHR && stateless_device(st.stx_rdev_major, st.stx_rdev_minor);
  if (type != S_IFREG && type != S_IFDIR && type != S_IFIFO && !device)
    throw Error(name + " is a device or socket that a restore does not open");
  const bool writable = (entry.flags() & O_ACCMODE) != O_RDONLY;
  if (type == S_IFREG && entry.has_size() && !writable && entry.size() != st.stx_size)
    throw Error(name + " has " + std::to_string(st.stx_size) + " bytes, but had " + std::to_string(entry.size()) +
                " when it was dumped; put the same file in its place");
}

Fd RegularRestorer::find(const img::reg_file_entry& entry) {
  const auto remap = remaps_.find(entry.id());
  Fd found;
  if (remap != remaps_.end() && remap->second.ghost)
    found = ghost(remap->second.id, entry.name()).dup();
  else if (remap != remaps_.end())
    found = find_linked(entry, remap->second.id);
  else
    found = open_below(root_.get(), entry.name(), O_PATH | O_NOFOLLOW);
  check_found(entry, stat_cached(found.get(), "", AT_EMPTY_PATH, entry.name()));
  return found;
}

Fd RegularRestorer::open(const img::reg_file_entry& entry, uint32_t flags) {
  if (CommandTerminal::named_by(entry)) return terminal_.open(entry, open_flags(flags));
  Fd found = find(entry);
  if (flags == entry.flags())
    if (auto ready = prepared_.extract(entry.id()); !ready.empty()) return std::move(ready.mapped());
  const bool nofollow = (flags & O_NOFOLLOW) != 0;
  // O_NOFOLLOW stays in the flags of a description, and nothing opened through /proc/self/fd can have it.
  if ((flags & O_PATH) != 0) {
    const auto remap = remaps_.find(entry.id());
    if (nofollow && (remap == remaps_.end() || !remap->second.ghost)) return found;
    return reopen(found.get(), static_cast<int>(flags & (O_PATH | O_DIRECTORY)), entry.name());
  }
  if (nofollow && !remaps_.contains(entry.id())) {
    Fd named = try_open_below(root_.get(), entry.name(), open_flags(flags) | O_NOFOLLOW);
    if (named && inode_of(stat_cached(named.get(), "", AT_EMPTY_PATH, entry.name())) ==
                     inode_of(stat_cached(found.get(), "", AT_EMPTY_PATH, entry.name())))
      return named;
  }
  return reopen(found.get(), open_flags(flags), entry.name());
}

const Fd& RegularRestorer::ghost(uint32_t ghost_id, const std::string& path) {
  const auto it = ghosts_.find(ghost_id);
  if (it != ghosts_.end()) return it->second;
  return ghosts_.emplace(ghost_id, make_ghost(ghost_id, path)).first->second;
}

Fd RegularRestorer::make_ghost(uint32_t ghost_id, const std::string& path) {
  char image[32];
  std::snprintf(image, sizeof image, "ghost-file-%x.img", ghost_id);
  auto reader = images_.read(image, magic::kGhostFile);
  img::ghost_file_entry g;
  if (!reader || !reader->next(g)) throw Corrupt("the image folder", std::string(image) + " is missing or empty");
  const mode_t type = g.mode() & S_IFMT;
  if (type != S_IFREG && type != S_IFIFO)
    throw Refusal("the deleted file " + path, "only regular files and FIFOs can be restored");
  const SplitPath split = split_path(path);
  const Folders folder(root_.get(), split.folder);
  Fd fd = type == S_IFREG ? make_tmpfile(ghost_id, folder.get()) : Fd();
  if (!fd) fd = make_named(ghost_id, type, folder.get(), split.name);
  if (type == S_IFREG) fill_ghost(fd.get(), g, *reader, path);
  const std::string self = "/proc/self/fd/" + std::to_string(fd.get());
  check(::fchownat(AT_FDCWD, self.c_str(), g.uid(), g.gid(), 0), "set the owner of", path);
  check(::chmod(self.c_str(), g.mode() & 07777), "set the mode of", path);
  const timespec times[2] = {
      {static_cast<time_t>(g.atim().tv_sec()), static_cast<long>(g.atim().tv_usec() % 1'000'000 * 1000)},
      {static_cast<time_t>(g.mtim().tv_sec()), static_cast<long>(g.mtim().tv_usec() % 1'000'000 * 1000)}};
  if (g.has_mtim()) ::utimensat(AT_FDCWD, self.c_str(), times, 0);
  // No writer stays: a program cannot run from a file that somebody may write to (ETXTBSY, PR_SET_MM_EXE_FILE's
  // EACCES).
  return reopen(fd.get(), O_PATH, path);
}

void RegularRestorer::fill_ghost(int fd, const img::ghost_file_entry& g, ImageReader& reader, const std::string& path) {
  // By offset: the description may be the task's own, whose position must stay.
  if (!g.chunks()) return pwrite_full(fd, reader.rest(), 0, path);
  const auto size = static_cast<uint64_t>(g.size());
  if (size > INT64_MAX) throw Corrupt("the image of the deleted file " + path, "its size is impossible");
  write_chunks(reader, fd, size, path);
  check(::ftruncate(fd, static_cast<off_t>(size)), "set the size of", path);
}

Fd RegularRestorer::make_tmpfile(uint32_t ghost_id, int folder) {
  const auto [from, to] = by_ghost_.equal_range(ghost_id);
  for (auto it = from; it != to; ++it) {
    const auto entry = entries_.find(it->second);
    if (entry == entries_.end() || entry->second.type() != img::fd_types::REG) continue;
    const uint32_t flags = entry->second.reg().flags();
    if (!made_as_tmpfile(flags) || (flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_RDONLY) continue;
    // The rest is set when the content is in: appending or aligned writes would not put it in its place.
    const uint32_t kept = flags & (O_ACCMODE | O_SYNC | O_NOATIME | kTmpfile | O_NOFOLLOW);
    // Not every file system has it.
    Fd fd(::openat(folder, ".", static_cast<int>(kept) | O_CLOEXEC, 0600));
    if (fd) prepared_[it->second] = fd.dup();
    return fd;
  }
  return {};
}

Fd RegularRestorer::make_named(uint32_t ghost_id, mode_t type, int folder, const std::string& wanted) {
  std::string name = wanted;
  const auto create = [&] {
    return type == S_IFREG ? ::openat(folder, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)
                           : ::mknodat(folder, name.c_str(), S_IFIFO | 0600, 0);
  };
  int made = create();
  for (int n = 0; made < 0 && errno == EEXIST && n < 100; ++n) {
    // The name was taken again: any name will do, since it goes at once.
    name = ".migrate-ghost-" + std::to_string(::getpid()) + "-" + std::to_string(n);
    made = create();
  }
  check(made, "make the deleted file", wanted);
  Fd fd = type == S_IFREG ? Fd(made) : Fd(::openat(folder, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  const auto [from, to] = by_ghost_.equal_range(ghost_id);
  for (auto it = from; type == S_IFREG && it != to; ++it) {
    const auto entry = entries_.find(it->second);
    if (entry == entries_.end() || entry->second.type() != img::fd_types::REG) continue;
    const uint32_t flags = entry->second.reg().flags();
    if ((flags & O_NOFOLLOW) == 0) continue;
    const int how = (flags & O_PATH) != 0 ? O_PATH | O_CLOEXEC : open_flags(flags);
    if (Fd named(::openat(folder, name.c_str(), how | O_NOFOLLOW)); named) prepared_[it->second] = std::move(named);
  }
  // Without a name from here on: whoever opens it does so through /proc/self/fd.
  ::unlinkat(folder, name.c_str(), 0);
  check(fd.get(), "open the deleted file", wanted);
  return fd;
}

Fd RegularRestorer::find_linked(const img::reg_file_entry& entry, uint32_t remap_id) {
  const auto it = entries_.find(remap_id);
  if (it == entries_.end() || it->second.type() != img::fd_types::REG)
    throw Corrupt("remap-fpath.img", "it names a file that is not in files.img");
  const std::string& path = it->second.reg().name();
  Fd found = open_below(root_.get(), path, O_PATH | O_NOFOLLOW);
  links_[remap_id] = path;
  // Seen under its old name, if that is free.
  const SplitPath from = split_path(path), to = split_path(entry.name());
  const Fd from_folder = open_below(root_.get(), from.folder, O_PATH | O_DIRECTORY);
  const Fd to_folder = open_below(root_.get(), to.folder, O_PATH | O_DIRECTORY);
  if (::linkat(from_folder.get(), from.name.c_str(), to_folder.get(), to.name.c_str(), 0) != 0) return found;
  Fd renamed(::openat(to_folder.get(), to.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  ::unlinkat(to_folder.get(), to.name.c_str(), 0);
  return renamed ? std::move(renamed) : std::move(found);
}

void RegularRestorer::remove_links(std::vector<std::string>& failures) {
  for (const auto& [id, path] : links_) try {
      const SplitPath split = split_path(path);
      const Fd folder = open_below(root_.get(), split.folder, O_PATH | O_DIRECTORY);
      if (split.name.starts_with("link_remap.")) check(::unlinkat(folder.get(), split.name.c_str(), 0), "remove", path);
    } catch (const Error& e) {
      failures.emplace_back(e.what());
    }
  links_.clear();
}

}  // namespace migrate
