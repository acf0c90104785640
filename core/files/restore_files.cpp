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
  MemfdRestorer memfds;
  RegularRestorer regular;
  PipeRestorer pipes;
  InetRestorer inet;
  UnixRestorer unix_sockets;
  std::map<uint32_t, Fd> files;
  std::map<uint32_t, int> numbers;

  Impl(const ImageSet& i, const FileRestoreOptions& o, Logger& l, std::map<uint64_t, WarmMemfd> warm)
      : images(i),
        options(o),
        log(l),
        entries(read_file_entries(i)),
        memfds(i, std::move(warm)),
        regular(i, entries, options),
        pipes(i),
        inet(o.hold_outside, o.tcp_close, l),
        unix_sockets(i, regular.root(), o.hold_outside, o.mark, l) {}

  /// Ids of all files that some table uses.
  std::map<uint32_t, img::fd_types> used() const {
    std::map<uint32_t, img::fd_types> ids;
    for (const uint32_t table : table_ids(images))
      for (const img::fdinfo_entry& e : read_table(images, table)) {
        const auto it = entries.find(e.id());
        if (it == entries.end())
          throw Corrupt(image_name("fdinfo", table), "fd " + std::to_string(e.fd()) + " has no file in files.img");
        if (it->second.type() != e.type())
          throw Corrupt(image_name("fdinfo", table), "fd " + std::to_string(e.fd()) + " is of another type");
        ids.emplace(e.id(), e.type());
      }
    return ids;
  }

  Fd open_regular(const img::reg_file_entry& e) {
    Fd fd = regular.open(e, e.flags());
    set_status_flags(fd.get(), e.flags(), e.name());
    if ((e.flags() & O_PATH) == 0) set_position(fd.get(), e.pos(), e.name());
    return fd;
  }

  Fd open_fifo(const img::fifo_entry& e) {
    const auto path = entries.find(e.regf_id());
    if (path == entries.end() || path->second.type() != img::fd_types::REG)
      throw Corrupt("files.img", "a FIFO has no path");
    Fd fd = pipes.open_fifo(e, regular.find(path->second.reg()), path->second.reg().flags());
    set_status_flags(fd.get(), path->second.reg().flags(), path->second.reg().name());
    return fd;
  }

  Fd open_memfd(const img::memfd_file_entry& e) {
    Fd fd = memfds.open(e, static_cast<int>(e.flags()) & O_ACCMODE);
    set_position(fd.get(), e.pos(), "a memfd");
    return fd;
  }

  Fd open_entry(const img::file_entry& e, uint64_t elapsed_ns) {
    switch (e.type()) {
      case img::fd_types::REG:
        return open_regular(e.reg());
      case img::fd_types::FIFO:
        return open_fifo(e.fifo());
      case img::fd_types::PIPE:
        return pipes.open_pipe(e.pipe());
      case img::fd_types::EVENTFD:
        return restore_eventfd(e.efd());
      case img::fd_types::TIMERFD:
        return restore_timerfd(e.tfd(), elapsed_ns);
      case img::fd_types::SIGNALFD:
        return restore_signalfd(e.sgfd());
      case img::fd_types::MEMFD:
        return open_memfd(e.memfd());
      case img::fd_types::EVENTPOLL:
        return Fd(check(::epoll_create1(EPOLL_CLOEXEC), "make", "an epoll"));
      case img::fd_types::INETSK:
        return inet.open(e.isk());
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

  void open_all(uint64_t elapsed_ns) {
    raise_limit();
    check_one_terminal(entries);
    const auto ids = used();
    memfds.seal(false);
    for (const auto& [id, type] : ids) {
      if (type == img::fd_types::UNIXSK)
        unix_sockets.add(entries.at(id).usk());
      else
        keep(id, open_entry(entries.at(id), elapsed_ns));
    }
    for (const auto& [id, entry] : entries)
      if (entry.type() == img::fd_types::UNIXSK && (entry.usk().uflags() & kUnixExternal) != 0 && !ids.contains(id))
        unix_sockets.add(entry.usk());
    for (auto& [id, fd] : unix_sockets.open_all()) keep(id, std::move(fd));
    pipes.finish();
    if (!options.hold_outside) after_gate();
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

Fd FileRestorer::open_file(uint32_t file_id, int flags) {
  const auto it = impl_->entries.find(file_id);
  if (it == impl_->entries.end()) throw Corrupt("files.img", "file " + std::to_string(file_id) + " is missing");
  const img::file_entry& e = it->second;
  const uint32_t wanted = flags == -1 ? flags_of(e) : static_cast<uint32_t>(flags);
  if (e.type() == img::fd_types::MEMFD) return impl_->memfds.open(e.memfd(), static_cast<int>(wanted) & O_ACCMODE);
  if (e.type() != img::fd_types::REG)
    throw Corrupt("files.img", "file " + std::to_string(file_id) + " is not one that has a path");
  return impl_->regular.open(e.reg(), wanted);
}

const std::map<uint64_t, Fd>& FileRestorer::shared_objects() { return impl_->memfds.objects(); }
bool FileRestorer::is_warm(uint64_t shmid) const { return impl_->memfds.is_warm(shmid); }
void FileRestorer::open_all(uint64_t elapsed_ns) { impl_->open_all(elapsed_ns); }
const std::map<uint32_t, int>& FileRestorer::opened() const { return impl_->numbers; }
std::vector<std::string> FileRestorer::after_gate() { return impl_->after_gate(); }

}  // namespace migrate
