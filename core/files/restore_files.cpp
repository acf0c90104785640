#include "core/files/restore_files.h"

#include <sys/epoll.h>
#include <sys/resource.h>

#include <algorithm>
#include <set>

#include "core/files/anonymous.h"
#include "core/files/image_tables.h"
#include "core/files/inet_socket.h"
#include "core/files/memfd.h"
#include "core/files/paths.h"
#include "core/files/pipe_restore.h"
#include "core/files/regular_restore.h"
#include "core/files/task_paths.h"
#include "core/files/unix_restore.h"
#include "core/files/unix_socket.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

/// Flags that F_SETFL changes. O_ASYNC comes with the owner, in the task's own shell.
constexpr int kStatusFlags = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;

void set_status_flags(int fd, uint32_t flags, const std::string& what) {
  const int now = check(::fcntl(fd, F_GETFL), "read the flags of", what);
  if ((now & O_PATH) != 0) return;
  const int wanted = static_cast<int>(flags) & kStatusFlags;
  if ((now & kStatusFlags) != wanted)
    check(::fcntl(fd, F_SETFL, (now & ~kStatusFlags) | wanted), "set the flags of", what);
}

void set_position(int fd, uint64_t pos, const std::string& what) {
  if (pos > INT64_MAX) throw Corrupt("files.img", what + " has an impossible position");
  if (pos != 0) check(::lseek(fd, static_cast<off_t>(pos), SEEK_SET), "set the position in", what);
}

}  // namespace

struct FileRestorer::Impl {
  const ImageSet& images;
  FileRestoreOptions options;
  Logger& log;
  std::map<uint32_t, img::file_entry> entries;
  FileOwners owners;
  Fd root;
  TaskPaths paths;
  MemfdRestorer memfds;
  RegularRestorer regular;
  PipeRestorer pipes;
  InetRestorer inet;
  UnixRestorer unix_sockets;
  std::map<uint32_t, Fd> files;
  std::map<uint32_t, int> numbers;
  std::map<std::set<uint32_t>, Holders> by_tables;  ///< holders by the tables that have a file

  Impl(const ImageSet& i, const FileRestoreOptions& o, Logger& l, std::map<uint64_t, WarmMemfd> warm)
      : images(i),
        options(o),
        log(l),
        entries(read_file_entries(i)),
        owners(i, o.owners),
        root(o.root_fd >= 0 ? Fd(check(::fcntl(o.root_fd, F_DUPFD_CLOEXEC, 0), "duplicate", "the root folder"))
                            : open_path("/", O_PATH | O_DIRECTORY)),
        paths(root.get(), o.by_root),
        memfds(i, std::move(warm)),
        regular(i, entries, owners, paths, o.terminal),
        pipes(i),
        inet(o.hold_outside, o.tcp_close, l),
        unix_sockets(i, owners, options.make_sockets, paths, o.hold_outside, o.mark, l) {
    if (!options.make_sockets) options.make_sockets = make_sockets;
    refuse_set_ids();
    refuse_peers();
  }

  /// Before anything is made.
  void refuse_peers() const {
    if (!options.owners) return;
    for (const auto& [id, use] : used())
      if (use.type == img::fd_types::UNIXSK) owners.check_peer(id, who_is(entries.at(id).usk()));
  }

  /// Before anything is made.
  void refuse_set_ids() {
    if (!regular.has_ghosts() && !memfds.has_set_ids()) return;
    for (const auto& [id, use] : used()) {
      const img::file_entry& e = entries.at(id);
      if (e.type() == img::fd_types::REG) regular.check_ghost(e.reg(), holders_of(use));
      if (e.type() == img::fd_types::MEMFD) memfds.check_set_id(e.memfd(), holders_of(use));
      if (e.type() != img::fd_types::FIFO) continue;
      const auto path = entries.find(e.fifo().regf_id());
      if (path != entries.end() && path->second.type() == img::fd_types::REG)
        regular.check_ghost(path->second.reg(), holders_of(use));
    }
  }

  struct Use {
    img::fd_types type;
    std::set<uint32_t> tables;
  };

  /// Any task that has a file may open it.
  const Holders& holders_of(const Use& use) {
    Holders& all = by_tables[use.tables];
    if (!all.empty()) return all;
    if (!options.holders) add_holder(all, paths.self());
    for (const uint32_t table : use.tables) {
      if (!options.holders) break;
      const auto it = options.holders->find(table);
      if (it == options.holders->end()) continue;
      for (const FileCredentials& who : it->second) add_holder(all, who);
    }
    least_rights_first(all);
    return all;
  }

  /// Ids of all files that some task uses.
  std::map<uint32_t, Use> used() const {
    std::map<uint32_t, Use> ids;
    for (const uint32_t table : table_ids(images)) {
      if (options.holders && !options.holders->contains(table)) continue;
      for (const img::fdinfo_entry& e : read_table(images, table)) {
        const auto it = entries.find(e.id());
        if (it == entries.end())
          throw Corrupt(image_name("fdinfo", table), "fd " + std::to_string(e.fd()) + " has no file in files.img");
        if (it->second.type() != e.type())
          throw Corrupt(image_name("fdinfo", table), "fd " + std::to_string(e.fd()) + " is of another type");
        ids.try_emplace(e.id(), Use{e.type(), {}}).first->second.tables.insert(table);
      }
    }
    return ids;
  }

  Fd open_regular(const img::reg_file_entry& e, const Holders& holders) {
    Fd fd = regular.open(e, e.flags(), holders);
    set_status_flags(fd.get(), e.flags(), e.name());
    if ((e.flags() & O_PATH) == 0) set_position(fd.get(), e.pos(), e.name());
    return fd;
  }

  Fd open_fifo(const img::fifo_entry& e, const Holders& holders) {
    const auto path = entries.find(e.regf_id());
    if (path == entries.end() || path->second.type() != img::fd_types::REG)
      throw Corrupt("files.img", "a FIFO has no path");
    const img::reg_file_entry& reg = path->second.reg();
    Fd fd;
    regular.with_found(reg, holders, [&](int found) { fd = pipes.open_fifo(e, found, reg.flags(), paths); });
    set_status_flags(fd.get(), reg.flags(), reg.name());
    return fd;
  }

  Fd open_memfd(const img::memfd_file_entry& e) {
    Fd fd = memfds.open(e, static_cast<int>(e.flags()) & O_ACCMODE);
    set_position(fd.get(), e.pos(), "a memfd");
    return fd;
  }

  Fd open_entry(const img::file_entry& e, const Use& use, std::optional<int64_t> dumped_at_ns) {
    const auto owner = [&] { return owners.owner(e.id(), holders_of(use)); };
    const FileOwner ours{paths.self().uid, paths.self().gid, {}};
    switch (e.type()) {
      case img::fd_types::PIPE:
        return pipes.open_pipe(e.pipe(), owner(), ours);
      case img::fd_types::EVENTFD:
        return restore_eventfd(e.efd());
      case img::fd_types::TIMERFD:
        return restore_timerfd(e.tfd(), dumped_at_ns);
      case img::fd_types::SIGNALFD:
        return restore_signalfd(e.sgfd());
      case img::fd_types::MEMFD:
        return open_memfd(e.memfd());
      case img::fd_types::EVENTPOLL:
        return Fd(check(::epoll_create1(EPOLL_CLOEXEC), "make", "an epoll"));
      case img::fd_types::INETSK:
        return inet.open(e.isk(), owner(), ours);
      default:
        throw Corrupt("files.img", "a file is of an unknown type");
    }
  }

  void keep(uint32_t id, Fd fd) {
    const img::file_entry& e = entries.at(id);
    if (e.type() != img::fd_types::REG && e.type() != img::fd_types::FIFO)
      set_status_flags(fd.get(), flags_of(e), "a restored file");
    if (e.type() == img::fd_types::INETSK) inet.remember(e.isk(), fd.get());
    numbers[id] = fd.get();
    files[id] = std::move(fd);
  }

  void open_all(std::optional<int64_t> dumped_at_ns) {
    raise_limit();
    check_one_terminal(entries);
    const auto ids = used();
    memfds.seal(false);
    open_paths(ids);
    for (const auto& [id, use] : ids) {
      const img::file_entry& e = entries.at(id);
      if (use.type == img::fd_types::UNIXSK) {
        unix_sockets.add(e.usk(), holders_of(use));
      } else if (use.type != img::fd_types::REG && use.type != img::fd_types::FIFO) {
        keep(id, open_entry(e, use, dumped_at_ns));
      }
    }
    static const Holders kNobody;
    for (const auto& [id, entry] : entries)
      if (entry.type() == img::fd_types::UNIXSK && (entry.usk().uflags() & kUnixExternal) != 0 && !ids.contains(id))
        unix_sockets.add(entry.usk(), kNobody);
    for (auto& [id, fd] : unix_sockets.open_all()) keep(id, std::move(fd));
    pipes.finish();
    if (!options.hold_outside) after_gate();
  }

  /// Those of one holder after the other, since taking on rights takes as long as opening a file.
  void open_paths(const std::map<uint32_t, Use>& ids) {
    std::map<const Holders*, std::vector<uint32_t>> by_holders;
    for (const auto& [id, use] : ids)
      if (use.type == img::fd_types::REG || use.type == img::fd_types::FIFO) by_holders[&holders_of(use)].push_back(id);
    const TaskPaths::Batch batch(paths);
    for (const auto& [holders, files_of] : by_holders)
      for (const uint32_t id : files_of) {
        const img::file_entry& e = entries.at(id);
        keep(id, e.type() == img::fd_types::REG ? open_regular(e.reg(), *holders) : open_fifo(e.fifo(), *holders));
      }
  }

  Fd open_wanted(const WantedFile& w) {
    const auto it = entries.find(w.id);
    if (it == entries.end()) throw Corrupt("files.img", "file " + std::to_string(w.id) + " is missing");
    const img::file_entry& e = it->second;
    const bool folder = w.use != WantedFile::Use::mapped;
    if (e.type() == img::fd_types::MEMFD && !folder) {
      memfds.check_set_id(e.memfd(), w.holders);
      return memfds.open(e.memfd(), w.access & O_ACCMODE);
    }
    if (e.type() != img::fd_types::REG)
      throw Corrupt("files.img", "file " + std::to_string(w.id) + " is not one that has a path");
    if (folder) return regular.open_folder(e.reg(), w.holders, w.use == WantedFile::Use::root_folder);
    return regular.open(e.reg(), static_cast<uint32_t>(w.access), w.holders);
  }

  static void raise_limit() {
    rlimit limit{};
    check(::getrlimit(RLIMIT_NOFILE, &limit), "read", "the limit of open files");
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }

  std::vector<std::string> after_gate() {
    std::vector<std::string> failures;
    inet.release(failures);
    unix_sockets.publish(failures);
    try {
      memfds.seal(true);
    } catch (const Error& e) {
      failures.emplace_back(e.what());
    }
    regular.remove_links(failures);
    return failures;
  }
};

void check_files_restorable(const ImageSet& images, size_t limit) {
  std::set<uint32_t> ids;
  for (const uint32_t table : table_ids(images))
    for (const img::fdinfo_entry& e : read_table(images, table)) ids.insert(e.id());
  // A coordinator has all of them open at once, and some more while it opens them.
  constexpr size_t kMore = 32;
  if (ids.size() + kMore > limit)
    throw Refusal("the tree has " + std::to_string(ids.size()) +
                      " open files, too many to be restored below our own limit of open files",
                  "raise that of this process (ulimit -Hn)");
  check_one_terminal(read_file_entries(images));
}

FileRestorer::FileRestorer(const ImageSet& images, const FileRestoreOptions& options, Logger& log,
                           std::map<uint64_t, WarmMemfd> warm)
    : impl_(std::make_unique<Impl>(images, options, log, std::move(warm))) {}
FileRestorer::~FileRestorer() = default;

std::vector<Fd> FileRestorer::open_files(const std::vector<WantedFile>& wanted) {
  const TaskPaths::Batch batch(impl_->paths);
  std::vector<Fd> opened;
  opened.reserve(wanted.size());
  for (const WantedFile& w : wanted) opened.push_back(impl_->open_wanted(w));
  return opened;
}

const std::map<uint64_t, Fd>& FileRestorer::shared_objects() { return impl_->memfds.objects(); }
bool FileRestorer::is_warm(uint64_t shmid) const { return impl_->memfds.is_warm(shmid); }
void FileRestorer::open_all(std::optional<int64_t> dumped_at_ns) { impl_->open_all(dumped_at_ns); }
const std::map<uint32_t, int>& FileRestorer::opened() const { return impl_->numbers; }
std::vector<std::string> FileRestorer::after_gate() { return impl_->after_gate(); }

}  // namespace migrate
