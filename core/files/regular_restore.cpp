#include "core/files/regular_restore.h"

#include <sys/time.h>

#include "core/files/kinds.h"
#include "core/files/paths.h"
#include "core/image/magic.h"
#include "images/ghost-file.pb.h"
#include "images/remap-file-path.pb.h"

namespace migrate {
namespace {

/// Flags that open(2) may see: nothing that creates or empties.
constexpr uint32_t kOpenFlags =
    O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_DIRECT | O_NOATIME | O_PATH | O_DIRECTORY;

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
    : images_(images), entries_(entries), shell_job_(options.shell_job) {
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
  }
}

void RegularRestorer::check_found(const img::reg_file_entry& entry, const struct statx& st) const {
  const mode_t type = st.stx_mode & S_IFMT;
  const std::string& name = entry.name();
  if (entry.has_mode() && type != (entry.mode() & S_IFMT))
    throw Error(name + " is a file of another type than the one that was dumped");
  const bool device = type == S_IFCHR && (stateless_device(st.stx_rdev_major, st.stx_rdev_minor) ||
                                          (shell_job_ && terminal_device(st.stx_rdev_major, st.stx_rdev_minor)));
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
  Fd found = find(entry);
  if ((flags & O_PATH) != 0) return found;
  // O_NONBLOCK: no waiting for the other end of a FIFO; the caller sets the wanted status flags afterwards.
  return reopen(found.get(), static_cast<int>(flags & kOpenFlags) | O_NONBLOCK | O_NOCTTY, entry.name());
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
  const Fd folder = open_below(root_.get(), split.folder, O_PATH | O_DIRECTORY);
  std::string name = split.name;
  const auto create = [&] {
    return type == S_IFREG
               ? ::openat(folder.get(), name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)
               : ::mknodat(folder.get(), name.c_str(), S_IFIFO | 0600, 0);
  };
  int made = create();
  for (int n = 0; made < 0 && errno == EEXIST && n < 100; ++n) {
    // The name was taken again: any name will do, since it goes at once.
    name = ".migrate-ghost-" + std::to_string(::getpid()) + "-" + std::to_string(n);
    made = create();
  }
  check(made, "make the deleted file", path);
  Fd fd = type == S_IFREG ? Fd(made) : Fd(::openat(folder.get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  // Without a name from here on: whoever opens it does so through /proc/self/fd.
  ::unlinkat(folder.get(), name.c_str(), 0);
  check(fd.get(), "open the deleted file", path);
  if (type == S_IFREG) {
    const auto size = static_cast<uint64_t>(g.size());
    if (g.chunks()) {
      if (size > INT64_MAX) throw Corrupt(image, "its size is impossible");
      write_chunks(*reader, fd.get(), size, image);
      check(::ftruncate(fd.get(), static_cast<off_t>(size)), "set the size of", path);
    } else {
      const auto rest = reader->rest();
      write_full(fd.get(), rest, path);
    }
  }
  const std::string self = "/proc/self/fd/" + std::to_string(fd.get());
  check(::fchownat(AT_FDCWD, self.c_str(), g.uid(), g.gid(), 0), "set the owner of", path);
  check(::chmod(self.c_str(), g.mode() & 07777), "set the mode of", path);
  const timespec times[2] = {
      {static_cast<time_t>(g.atim().tv_sec()), static_cast<long>(g.atim().tv_usec() % 1'000'000 * 1000)},
      {static_cast<time_t>(g.mtim().tv_sec()), static_cast<long>(g.mtim().tv_usec() % 1'000'000 * 1000)}};
  if (g.has_mtim()) ::utimensat(AT_FDCWD, self.c_str(), times, 0);
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
