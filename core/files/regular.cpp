#include "core/files/regular.h"

#include <dirent.h>
#include <sys/vfs.h>

#include <optional>
#include <sstream>

#include "core/files/extended_attributes.h"
#include "core/files/file_owners.h"
#include "core/files/paths.h"
#include "core/files/task_paths.h"
#include "core/image/magic.h"
#include "images/ghost-file.pb.h"
#include "images/remap-file-path.pb.h"

namespace migrate {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

/// The content of a sparse file as (length, offset) chunks.
void write_chunks(const Fd& file, uint64_t size, ImageWriter& out, const std::string& what) {
  off_t at = 0;
  while (static_cast<uint64_t>(at) < size) {
    const off_t data = ::lseek(file.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return;
    check(data, "find data in", what);
    const off_t hole = check(::lseek(file.get(), data, SEEK_HOLE), "find a hole in", what);
    std::vector<std::byte> bytes(static_cast<size_t>(hole - data));
    if (pread_full(file.get(), bytes, static_cast<uint64_t>(data), what) != bytes.size())
      throw Error("read", what, EIO);
    img::ghost_chunk_entry chunk;
    chunk.set_len(bytes.size());
    chunk.set_off(static_cast<uint64_t>(data));
    out.entry(chunk);
    out.raw(bytes);
    at = hole;
  }
}

void set_time(img::timeval& out, const statx_timestamp& t) {
  out.set_tv_sec(static_cast<uint64_t>(t.tv_sec));
  out.set_tv_usec(t.tv_nsec / 1000);
}

/// "fuse.sshfs", by the id that fdinfo tells; "" if it is not found.
std::string file_system_of(const ProcDir& task, int mount_id) {
  std::istringstream lines(task.read("mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    if (std::atoi(line.c_str()) != mount_id) continue;
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) return "";
    return line.substr(dash + 3, line.find(' ', dash + 3) - dash - 3);
  }
  return "";
}

/// "/proc/42/task/43/...": when files are opened again there are no threads yet, but for the first of each task.
void check_not_of_thread(const OpenFile& file) {
  constexpr std::string_view kProc = "/proc/", kTask = "/task/";
  if (!file.link.starts_with(kProc)) return;
  const size_t end = file.link.find('/', kProc.size());
  if (end == std::string::npos || file.link.compare(end, kTask.size(), kTask) != 0) return;
  const std::string task = file.link.substr(kProc.size(), end - kProc.size());
  const size_t thread = end + kTask.size();
  if (file.link.substr(thread, file.link.find('/', thread) - thread) == task) return;
  throw Refusal(file.who() + ", " + file.link + ", which is of a thread", "close it first");
}

std::string deleted_file(const OpenFile& file) { return file.who() + ", the deleted file " + file.link; }

bool is_on_fuse(const OpenFile& file) {
  return file.proc != nullptr && file.info.mnt_id >= 0 &&
         file_system_of(*file.proc, file.info.mnt_id).starts_with("fuse");
}

/// Before the tree is stopped there may be no descriptor of ours. A server in user space is not asked: it may be
/// stopped.
ExtendedAttributes attributes_of(const OpenFile& file) {
  if (is_on_fuse(file)) return {};
  std::string path;
  if (file.ours) path = fd_link(file.ours.get());
  if (path.empty() && file.proc != nullptr && file.fd >= 0)
    path = "/proc/" + std::to_string(file.proc->pid()) + "/fd/" + std::to_string(file.fd);
  return path.empty() ? ExtendedAttributes() : read_extended_attributes(path, deleted_file(file));
}

/// What check_ghost() asks, but for the attributes.
void check_content(const OpenFile& file, const FileDumpOptions& options) {
  if (file.type() != S_IFREG && file.type() != S_IFIFO && file.type() != S_IFDIR)
    throw Refusal(file.who() + ", the deleted device " + file.link, "close it first");
  // Its content is read while the tree stands still: by a server, which may take any time, or be stopped with the tree.
  if (file.type() == S_IFREG && is_on_fuse(file))
    throw Refusal(deleted_file(file) + " on a file system in user space (FUSE)", "close it first");
  const uint64_t bytes = std::min<uint64_t>(file.st.stx_size, file.st.stx_blocks * 512);
  if (file.type() == S_IFREG && bytes > options.ghost_limit)
    throw Refusal(deleted_file(file) + " of " + std::to_string(file.st.stx_size) + " bytes",
                  options.advice != Advice::none
                      ? "raise --ghost-limit to carry its content along"
                      : "close it first; no more than " + std::to_string(options.ghost_limit) +
                            " bytes of a deleted file are carried along");
}

}  // namespace

void check_ghost(const OpenFile& file, const FileDumpOptions& options) {
  check_not_of_thread(file);
  if (file.st.stx_nlink != 0) return;
  check_content(file, options);
  attributes_of(file);
}

namespace {

[[noreturn]] void refuse_other_name(const OpenFile& file, const std::string& path, const FileDumpOptions& options) {
  throw Refusal(file.who() + ", the file " + path + ", which was removed there but has another name somewhere",
                options.advice == Advice::all ? "use --link-remap to give it a temporary name beside its old one"
                                              : "close it first, or link its other name to this path again");
}

}  // namespace

namespace {

/// Another name of the file in the folder that it was in. Those that begin with a point are not looked at.
std::optional<std::string> name_beside(int root, const std::string& path, const OpenFile& file) {
  const Fd folder = try_open_below(root, split_path(path).folder, O_RDONLY | O_DIRECTORY);
  if (!folder) return std::nullopt;
  std::optional<std::string> found;
  for_entries(folder.get(), ".", [&](const dirent& entry) {
    const std::string name = entry.d_name;
    if (found || entry.d_ino != file.st.stx_ino || name.starts_with(kLinkPrefix)) return;
    const Fd there = try_open_plain(folder.get(), name, O_PATH | O_NOFOLLOW);
    if (there && inode_of(stat_opened(there.get(), name)) == inode_of(file.st)) found = name;
  });
  return found;
}

/// The pid in "/proc/42/stat"; 0: it is none of those.
pid_t pid_in_path(const std::string& path) {
  constexpr std::string_view kProc = "/proc/";
  return path.starts_with(kProc) ? std::atoi(path.c_str() + kProc.size()) : 0;
}

}  // namespace

void check_name(const OpenFile& file, const FileDumpOptions& options) {
  if (file.st.stx_nlink == 0 || file.type() == S_IFDIR || options.link_remap || !file.link.ends_with(kDeleted)) return;
  if (file.proc->link("root") != "/") return;
  const std::string path = file.link.substr(0, file.link.size() - kDeleted.size());
  const Fd root = file.proc->open("root", O_PATH | O_DIRECTORY);
  const Fd found = try_open_below(root.get(), path, O_PATH | O_NOFOLLOW);
  if (found && inode_of(stat_cached(found.get(), "", AT_EMPTY_PATH, path)) == inode_of(file.st)) return;
  if (!name_beside(root.get(), path, file)) refuse_other_name(file, path, options);
}

RegularDumper::~RegularDumper() {
  for (const Link& link : links_) try {
      ActingAs acting;
      acting.become(link.who);
      ::unlinkat(link.folder.get(), link.name.c_str(), 0);
    } catch (const std::exception&) {
      // It stays: its folder's owner can remove it.
    }
}

void RegularDumper::dump(const OpenFile& file, bool with_size) {
  check_not_of_thread(file);
  const Place place = locate(file);
  img::file_entry entry = entry_of(img::fd_types::REG, file.id);
  img::reg_file_entry& reg = *entry.mutable_reg();
  describe_common(file, reg);
  reg.set_pos(file.info.pos);
  reg.set_name(place.path);
  reg.set_mnt_id(-1);
  reg.set_mode(file.st.stx_mode);
  if (with_size && file.type() == S_IFREG) reg.set_size(file.st.stx_size);
  if (place.found == Found::ghost) add_ghost(file);
  if (place.found == Found::elsewhere) add_link(file, place.path, place.name);
  if (place.found == Found::ended)
    add_remap(file.id, static_cast<uint32_t>(pid_in_path(place.path)), img::remap_type::PROCFS);
  context_.emit(entry);
  record_owner(context_, file);
}

RegularDumper::Place RegularDumper::locate(const OpenFile& file) {
  if (leads_to(file, file.link)) return {Found::linked, file.link, {}};
  if (is_of_ended_task(file)) {
    const bool gone = file.link.ends_with(kDeleted);
    return {Found::ended, gone ? file.link.substr(0, file.link.size() - kDeleted.size()) : file.link, {}};
  }
  if (file.link.ends_with(kDeleted)) {
    std::string path = file.link.substr(0, file.link.size() - kDeleted.size());
    if (leads_to(file, path)) return {Found::linked, path, {}};
    if (file.st.stx_nlink == 0) return {Found::ghost, path, {}};
    if (file.type() == S_IFDIR)
      throw Refusal(file.who() + ", the deleted folder " + path + " that is still somewhere",
                    "make the program leave it first");
    const auto other =
        name_beside(root_of(*file.proc).get(), path.substr(roots_.at(file.proc->pid()).prefix.size()), file);
    if (other || context_.options.link_remap) return {Found::elsewhere, path, other.value_or("")};
    refuse_other_name(file, path, context_.options);
  }
  throw Refusal(file.who() + ", the file " + file.link + ", which this path no longer leads to",
                "something is mounted over it: unmount that first");
}

/// A file of /proc of a process that is gone, and whose pid no task of the tree has now.
bool RegularDumper::is_of_ended_task(const OpenFile& file) const {
  constexpr uint32_t kProcFs = 0x9fa0;
  struct statfs fs {};
  const pid_t pid = pid_in_path(file.link);
  if (pid <= 0 || !file.ours || ::fstatfs(file.ours.get(), &fs) != 0 || static_cast<uint32_t>(fs.f_type) != kProcFs)
    return false;
  if (context_.in_tree && context_.in_tree(pid))
    throw Refusal(file.who() + ", " + file.link + " of a process that has ended, whose pid a task of the tree has now",
                  "close it first");
  return true;
}

const Fd& RegularDumper::root_of(const ProcDir& task) {
  const auto it = roots_.find(task.pid());
  if (it != roots_.end()) return it->second.fd;
  Root root;
  const bool ours = stat_cached(task.fd(), "ns/mnt", 0, "a mount namespace").stx_ino ==
                    stat_cached(AT_FDCWD, "/proc/self/ns/mnt", 0, "a mount namespace").stx_ino;
  if (ours) {
    root.fd = open_path("/", O_PATH | O_DIRECTORY);
  } else {
    root.fd = task.open("root", O_PATH | O_DIRECTORY);
    root.prefix = task.link("root");
    if (root.prefix == "/") root.prefix.clear();
  }
  return roots_.emplace(task.pid(), std::move(root)).first->second.fd;
}

bool RegularDumper::leads_to(const OpenFile& file, const std::string& path) {
  const Fd& root = root_of(*file.proc);
  const std::string& prefix = roots_.at(file.proc->pid()).prefix;
  if (!path.starts_with(prefix)) return false;
  const std::string below = path.substr(prefix.size());
  const Fd found = try_open_below(root.get(), below.empty() ? "/" : below, O_PATH | O_NOFOLLOW);
  return found && inode_of(stat_cached(found.get(), "", AT_EMPTY_PATH, path)) == inode_of(file.st);
}

void RegularDumper::add_remap(uint32_t file_id, uint32_t remap_id, int type) {
  img::remap_file_path_entry remap;
  remap.set_orig_id(file_id);
  remap.set_remap_id(remap_id);
  remap.set_remap_type(static_cast<img::remap_type>(type));
  context_.images.write("remap-fpath.img", magic::kRemapFpath).entry(remap);
}

void RegularDumper::add_ghost(const OpenFile& file) {
  const auto [it, fresh] = ghosts_.try_emplace(inode_of(file.st), static_cast<uint32_t>(ghosts_.size() + 1));
  if (fresh) write_ghost(file, it->second);
  add_remap(file.id, it->second, img::remap_type::GHOST);
}

void RegularDumper::write_ghost(const OpenFile& file, uint32_t ghost_id) {
  const struct statx& st = file.st;
  check_not_of_thread(file);
  check_content(file, context_.options);
  img::ghost_file_entry ghost;
  ghost.set_uid(st.stx_uid);
  ghost.set_gid(st.stx_gid);
  ghost.set_mode(st.stx_mode);
  ghost.set_dev(st.stx_dev_major << 20 | st.stx_dev_minor);
  ghost.set_ino(st.stx_ino);
  set_time(*ghost.mutable_atim(), st.stx_atime);
  set_time(*ghost.mutable_mtim(), st.stx_mtime);
  write_extended_attributes(attributes_of(file), ghost_id, context_.images);
  char name[32];
  std::snprintf(name, sizeof name, "ghost-file-%x.img", ghost_id);
  ImageWriter out = context_.images.write(name, magic::kGhostFile);
  if (file.type() != S_IFREG) return out.entry(ghost);
  const bool sparse = st.stx_blocks * 512 < st.stx_size;
  ghost.set_size(st.stx_size);
  if (sparse) ghost.set_chunks(true);
  out.entry(ghost);
  // Our duplicate may be write-only, and its position is the task's: a description of our own.
  const Fd readable = open_path(fd_link(file.ours.get()), O_RDONLY);
  if (sparse) return write_chunks(readable, st.stx_size, out, file.link);
  std::vector<std::byte> content(st.stx_size);
  if (pread_full(readable.get(), content, 0, file.link) != content.size()) throw Error("read", file.link, EIO);
  out.raw(content);
}

/// By the right of a task that has it, else by root where root alone can change the folder: the program chose both.
/// Gives the name.
std::string RegularDumper::link_beside(const OpenFile& file, const std::string& path, uint32_t id) {
  const Fd& root = root_of(*file.proc);
  const SplitPath split = split_path(path.substr(roots_.at(file.proc->pid()).prefix.size()));
  const std::string self = fd_link(file.ours.get());
  TaskPaths paths(root.get(), true);
  std::string name;
  try {
    paths.attempt({credentials_of(*file.proc)}, file.who() + ", a file that was removed from " + split.folder,
                  [&](Right right) {
                    Fd folder = paths.find_folder(right, split.folder);
                    int failed = -1;
                    // Names that somebody took are no reason to fail.
                    for (int n = 0; failed != 0 && n < 100; ++n) {
                      name = kLinkPrefix + std::to_string(id) + (n == 0 ? "" : "." + std::to_string(n));
                      failed = ::linkat(AT_FDCWD, self.c_str(), folder.get(), name.c_str(), AT_SYMLINK_FOLLOW);
                      if (failed != 0 && errno != EEXIST) break;
                    }
                    check(failed, "link", path + " as " + name);
                    links_.push_back({std::move(folder), name, paths.now()});
                  });
  } catch (const Refusal& e) {
    const std::string text = e.what();
    throw Refusal(text.substr(0, text.find("; ")), "close it first, or link its other name to this path again");
  }
  return name;
}

void RegularDumper::add_link(const OpenFile& file, const std::string& path, std::string name) {
  const uint32_t id = context_.new_id();
  if (name.empty()) name = link_beside(file, path, id);
  img::file_entry entry = entry_of(img::fd_types::REG, id);
  img::reg_file_entry& reg = *entry.mutable_reg();
  describe_common(file, reg);
  reg.set_id(id);
  reg.set_pos(0);
  reg.set_name(path.substr(0, path.rfind('/') + 1) + name);
  reg.set_mnt_id(-1);
  reg.set_mode(file.st.stx_mode);
  context_.emit(entry);
  add_remap(file.id, id, img::remap_type::LINKED);
}

}  // namespace migrate
