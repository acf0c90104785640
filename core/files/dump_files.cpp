#include "core/files/dump_files.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <unordered_map>

#include "core/files/anonymous.h"
#include "core/files/epoll.h"
#include "core/files/file_locks.h"
#include "core/files/inet_socket.h"
#include "core/files/kinds.h"
#include "core/files/memfd.h"
#include "core/files/pipe.h"
#include "core/files/regular.h"
#include "core/files/unix_socket.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

/// kcmp(2): the kernel orders objects by an obfuscated address, so that many can be sorted instead of compared
/// pairwise.
int compare_objects(pid_t a, pid_t b, int type, unsigned long x, unsigned long y) {
  const long r = check(::syscall(SYS_kcmp, a, b, type, x, y), "compare objects of task", std::to_string(a));
  return r == 1 ? -1 : r == 2 ? 1 : static_cast<int>(r);
}

struct Slot {
  pid_t pid;
  int fd;
};

struct SlotLess {
  bool operator()(const Slot& a, const Slot& b) const {
    return compare_objects(a.pid, b.pid, KCMP_FILE, static_cast<unsigned>(a.fd), static_cast<unsigned>(b.fd)) < 0;
  }
};

struct TableLess {
  bool operator()(pid_t a, pid_t b) const { return compare_objects(a, b, KCMP_FILES, 0, 0) < 0; }
};

/// What two descriptors must agree in to be one description; cheap, from fdinfo.
using PreKey = std::tuple<uint64_t, int, uint32_t, uint64_t, uint64_t>;
PreKey pre_key(const FdInfo& info) {
  // All eventfds share one inode, but each has a number of its own (Linux 5.2).
  const uint64_t eventfd = fdinfo_field(info, "eventfd-id:") ? fdinfo_number(info, "eventfd-id:", 10) + 1 : 0;
  return {info.ino, info.mnt_id, info.flags, info.pos, eventfd};
}

}  // namespace

struct FileDumper::Impl {
  struct Table {
    pid_t pid;
    std::map<int, uint64_t> inodes;  ///< number → inode, as fdinfo tells
  };

  const std::vector<StoppedTask>& tasks;
  FileDumpOptions options;
  ImageSet& images;
  Logger& log;
  DumpContext context;
  KindTable kinds;
  RegularDumper regular;
  PipeDumper pipes;
  MemfdDumper memfds;
  InetDumper inet_sockets;
  UnixDumper unix_sockets;
  EpollDumper epolls;
  LockDumper locks;
  std::map<pid_t, uint32_t> ids_of_tasks;
  std::map<uint32_t, Table> tables;
  struct Known {
    uint32_t id;
    img::fd_types type;
  };
  std::map<PreKey, std::map<Slot, Known, SlotLess>> descriptions;
  std::unordered_map<uint32_t, std::vector<Holder>> epoll_holders;
  std::unordered_map<uint64_t, int> descriptions_of_inode;
  using PathKey = std::tuple<InodeKey, std::string, uint32_t>;
  std::map<PathKey, uint32_t> paths;
  std::optional<std::map<pid_t, pid_t>> numbers;  ///< our pids → the tree's; empty: the same

  Impl(const std::vector<StoppedTask>& t, const FileDumpOptions& o, ImageSet& i, Logger& l)
      : tasks(t),
        options(o),
        images(i),
        log(l),
        context{options, images, log},
        regular(context),
        pipes(context),
        memfds(context),
        inet_sockets(context),
        unix_sockets(context),
        epolls(context),
        locks(context) {
    context.pid_in_tree = [this](pid_t pid) { return pid_in_tree(pid); };
    assign_tables();
  }

  void assign_tables() {
    std::map<pid_t, uint32_t, TableLess> by_table;
    for (const StoppedTask& task : tasks) {
      if (task.state == TaskState::zombie) continue;
      const pid_t pid = task.pid.get();
      const auto [it, fresh] = by_table.try_emplace(pid, static_cast<uint32_t>(by_table.size() + 1));
      ids_of_tasks[pid] = it->second;
      if (fresh) tables[it->second] = Table{pid, {}};
      for (const StoppedThread& thread : task.threads)
        if (thread.tid.get() != pid && compare_objects(pid, thread.tid.get(), KCMP_FILES, 0, 0) != 0)
          throw Refusal("thread " + std::to_string(thread.tid.get()) + " of task " + std::to_string(pid) +
                            " has a descriptor table of its own",
                        "it cannot be moved");
    }
  }

  /// Of a process that has ended, or lies outside of the tree, only where both namespaces are one.
  pid_t pid_in_tree(pid_t pid) {
    if (!numbers) {
      numbers.emplace();
      const auto ns = [](int folder, const char* path) {
        return stat_cached(folder, path, 0, "a pid namespace").stx_ino;
      };
      const bool one = ns(tasks.front().proc.fd(), "ns/pid") == ns(AT_FDCWD, "/proc/self/ns/pid");
      for (const StoppedTask& task : tasks) {
        if (one) break;
        std::istringstream words(task.proc.status()["NSpid"]);
        for (pid_t number; words >> number;) (*numbers)[task.pid.get()] = number;  // the innermost is the last
      }
    }
    if (numbers->empty()) return pid;
    const auto it = numbers->find(pid);
    return it == numbers->end() ? 0 : it->second;
  }

  void dump_table(const StoppedTask& task, uint32_t files_id) {
    Table& table = tables.at(files_id);
    if (table.pid != task.pid.get()) return;
    ImageWriter out = images.write(image_name("fdinfo", files_id), magic::kFdinfo);
    const Fd folder = task.proc.open("fdinfo", O_RDONLY | O_DIRECTORY);
    for (const int fd : task.proc.descriptors()) {
      OpenFile file;
      file.proc = &task.proc;
      file.fd = fd;
      file.info = parse_fdinfo(read_file_at(folder.get(), std::to_string(fd), 64 << 20));
      const bool cloexec = file.info.cloexec;
      table.inodes.emplace(fd, file.info.ino);
      const bool locked = fdinfo_field(file.info, "lock:").has_value();
      const FdInfo info = locked ? file.info : FdInfo();
      if (locked) {
        file.link = task.proc.link("fd/" + std::to_string(fd));
        check_file_locks(file, options);
      }
      const Known known = describe_once(task, files_id, std::move(file));
      if (locked) locks.add(task.proc, fd, files_id, known.id, info);
      img::fdinfo_entry entry;
      entry.set_id(known.id);
      entry.set_flags(cloexec ? FD_CLOEXEC : 0);
      entry.set_type(known.type);
      entry.set_fd(static_cast<uint32_t>(fd));
      out.entry(entry);
    }
  }

  Known describe_once(const StoppedTask& task, uint32_t files_id, OpenFile file) {
    const Slot slot{task.pid.get(), file.fd};
    auto& bucket = descriptions[pre_key(file.info)];
    const auto known = bucket.lower_bound(slot);
    if (known != bucket.end() && !SlotLess()(slot, known->first)) {
      if (known->second.type == img::fd_types::EVENTPOLL)
        epoll_holders[known->second.id].push_back({files_id, slot.pid, slot.fd});
      return known->second;
    }
    file.id = context.new_id();
    file.link = task.proc.link("fd/" + std::to_string(file.fd));
    file.ours = get_remote_fd(task.pidfd.get(), file.fd);
    file.st = stat_cached(file.ours.get(), "", AT_EMPTY_PATH, file.who());
    ++descriptions_of_inode[file.info.ino];
    const Known fresh{file.id, describe(file)};
    if (fresh.type == img::fd_types::EVENTPOLL) epoll_holders[fresh.id].push_back({files_id, slot.pid, slot.fd});
    bucket.emplace_hint(known, slot, fresh);
    return fresh;
  }

  img::fd_types describe(const OpenFile& file) {
    switch (kinds.classify(file, options)) {
      case FileKind::regular:
        return regular.dump(file), img::fd_types::REG;
      case FileKind::pipe:
        return pipes.dump_pipe(file), img::fd_types::PIPE;
      case FileKind::fifo:
        // An O_PATH descriptor of a FIFO is only its path.
        if ((file.info.flags & O_PATH) != 0) return regular.dump(file), img::fd_types::REG;
        return pipes.dump_fifo(file, regular), img::fd_types::FIFO;
      case FileKind::eventfd:
        return dump_eventfd(file, context), img::fd_types::EVENTFD;
      case FileKind::epoll:
        return epolls.collect(file), img::fd_types::EVENTPOLL;
      case FileKind::timerfd:
        return dump_timerfd(file, context), img::fd_types::TIMERFD;
      case FileKind::signalfd:
        return dump_signalfd(file, context), img::fd_types::SIGNALFD;
      case FileKind::memfd:
        return memfds.dump(file), img::fd_types::MEMFD;
      case FileKind::unix_socket:
        return unix_sockets.dump(file), img::fd_types::UNIXSK;
      case FileKind::inet_socket:
        return inet_sockets.dump(file), img::fd_types::INETSK;
    }
    throw Corrupt("the table of file kinds", "a kind is missing");
  }

  void dump_descriptors() {
    for (const StoppedTask& task : tasks)
      if (task.state != TaskState::zombie) dump_table(task, ids_of_tasks.at(task.pid.get()));
    pipes.check_ends();
    unix_sockets.finish();
    epolls.finish([&](uint32_t id) { return epoll_holders[id]; },
                  [&](uint32_t files_id, int fd) { return tables.at(files_id).inodes.contains(fd); },
                  [&](uint64_t ino) { return descriptions_of_inode[ino] != 1; },
                  [&](uint32_t files_id, int fd) { return tables.at(files_id).inodes.at(fd); });
    descriptions.clear();
  }

  /// A file known by a link of a task's /proc folder, not by a descriptor.
  OpenFile by_link(const ProcDir& task, const std::string& link, uint32_t flags) {
    OpenFile file;
    file.proc = &task;
    file.link = task.link(link);
    file.ours = task.open(link, O_PATH);
    file.st = stat_cached(file.ours.get(), "", AT_EMPTY_PATH, file.link);
    file.info.flags = flags & ~static_cast<uint32_t>(O_CLOEXEC);
    return file;
  }

  template <class Dump>
  uint32_t add(const ProcDir& task, const std::string& link, uint32_t flags, Dump dump) {
    OpenFile file = by_link(task, link, flags);
    const auto [it, fresh] = paths.try_emplace(PathKey{inode_of(file.st), file.link, flags}, 0);
    if (!fresh) return it->second;
    file.id = it->second = context.new_id();
    dump(file);
    return file.id;
  }
};

FileDumper::FileDumper(const std::vector<StoppedTask>& tasks, const FileDumpOptions& options, ImageSet& images,
                       Logger& log)
    : impl_(std::make_unique<Impl>(tasks, options, images, log)) {}
FileDumper::~FileDumper() = default;

void FileDumper::dump_descriptors() { impl_->dump_descriptors(); }

uint32_t FileDumper::files_id(Pid task) const { return impl_->ids_of_tasks.at(task.get()); }

uint32_t FileDumper::add_path(const ProcDir& task, const std::string& link, uint32_t flags) {
  return impl_->add(task, link, flags, [&](const OpenFile& file) {
    try {
      impl_->regular.dump(file);
    } catch (const Refusal& e) {
      // The file has no descriptor number to name it by.
      std::string text = e.what();
      const std::string who = file.who();
      if (text.starts_with(who)) text.replace(0, who.size(), "task " + std::to_string(task.pid()) + " uses as " + link);
      const size_t remedy = text.find("; ");
      throw Refusal(text.substr(0, remedy), remedy == std::string::npos ? "" : text.substr(remedy + 2));
    }
  });
}

uint32_t FileDumper::add_memfd(const ProcDir& task, const std::string& link, uint32_t flags) {
  return impl_->add(task, link, flags, [&](const OpenFile& file) { impl_->memfds.dump(file); });
}

std::vector<SharedObject> FileDumper::take_shared_objects() { return impl_->memfds.take_objects(); }

void FileDumper::finish() {
  impl_->images.write("files.img", magic::kFiles);  // present even without a single file
}

void FileDumper::keep_links() noexcept { impl_->regular.keep_links(); }

}  // namespace migrate
