#include "core/files/dump_files.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <unordered_map>

#include "core/files/descriptor_tables.h"
#include "core/files/file_locks.h"
#include "core/files/kinds.h"
#include "core/files/running_tree.h"
#include "core/files/used_by_link.h"
#include "core/files/waiting_descriptor.h"
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
  const std::vector<StoppedTask>& tasks;
  FileDumpOptions options;
  ImageSet& images;
  Logger& log;
  DumpContext context;
  DumpKinds kinds;
  LockDumper locks;
  std::map<pid_t, uint32_t> ids_of_tasks;
  std::map<uint32_t, pid_t> first_of_table;  ///< the task whose numbers are read for all that share it
  DescriptorTables tables;
  struct Known {
    uint32_t id;
    img::fd_types type;
  };
  std::map<PreKey, std::map<Slot, Known, SlotLess>> descriptions;
  std::vector<Fd> waiting;  ///< those of queues: `descriptions` name them by their numbers here
  using PathKey = std::tuple<InodeKey, std::string, uint32_t>;
  std::map<PathKey, uint32_t> paths;
  std::optional<std::map<pid_t, pid_t>> numbers;  ///< our pids → the tree's; empty: the same

  Impl(const std::vector<StoppedTask>& t, const FileDumpOptions& o, ImageSet& i, Logger& l)
      : tasks(t), options(o), images(i), log(l), context{options, images, log}, kinds(context), locks(context) {
    context.pid_in_tree = [this](pid_t pid) { return pid_in_tree(pid); };
    context.in_tree = [this](pid_t pid) {
      return std::ranges::any_of(tasks, [pid](const StoppedTask& task) { return task.pid.get() == pid; });
    };
    context.describe_waiting = [this](const ProcDir& holder, Fd fd, const std::string& socket) {
      return describe_waiting(holder, std::move(fd), socket);
    };
    context.outside_writer = [this](const InodeKey& file) {
      std::set<pid_t> pids;
      for (const StoppedTask& task : tasks) pids.insert(task.pid.get());
      return RunningTree(std::move(pids)).outside_writer(file);
    };
    raise_descriptor_limit();
    assign_tables();
  }

  void assign_tables() {
    std::map<pid_t, uint32_t, TableLess> by_table;
    for (const StoppedTask& task : tasks) {
      if (task.state == TaskState::zombie) continue;
      const pid_t pid = task.pid.get();
      const auto [it, fresh] = by_table.try_emplace(pid, static_cast<uint32_t>(by_table.size() + 1));
      ids_of_tasks[pid] = it->second;
      if (fresh) first_of_table[it->second] = pid;
      for (const StoppedThread& thread : task.threads)
        if (thread.tid.get() != pid && compare_objects(pid, thread.tid.get(), KCMP_FILES, 0, 0) != 0)
          throw Refusal("thread " + std::to_string(thread.tid.get()) + " of task " + std::to_string(pid) +
                            " has a descriptor table of its own",
                        "it cannot be moved");
    }
  }

  /// Of a task, a group or a session. Of a process that has ended, or lies outside of the tree, only where both
  /// namespaces are one.
  pid_t pid_in_tree(pid_t pid) {
    if (!numbers) {
      numbers.emplace();
      const auto ns = [](int folder, const char* path) {
        return stat_cached(folder, path, 0, "a pid namespace").stx_ino;
      };
      const bool one = ns(tasks.front().proc.fd(), "ns/pid") == ns(AT_FDCWD, "/proc/self/ns/pid");
      for (const StoppedTask& task : tasks) {
        if (one) break;
        auto status = task.proc.status();
        for (const char* kind : {"NSpid", "NSpgid", "NSsid"}) {
          std::istringstream words(status[kind]);
          pid_t first = 0, last = 0;  // ours, and the innermost
          if (!(words >> first)) continue;
          for (last = first; words >> last;) {
          }
          numbers->emplace(first, last);
        }
      }
    }
    if (numbers->empty()) return pid;
    const auto it = numbers->find(pid);
    return it == numbers->end() ? 0 : it->second;
  }

  void dump_table(const StoppedTask& task, uint32_t files_id) {
    if (first_of_table.at(files_id) != task.pid.get()) return;
    ImageWriter out = images.write(image_name("fdinfo", files_id), magic::kFdinfo);
    const Fd folder = task.proc.open("fdinfo", O_RDONLY | O_DIRECTORY);
    for (const int fd : task.proc.descriptors()) {
      OpenFile file;
      file.proc = &task.proc;
      file.fd = fd;
      file.info = parse_fdinfo(read_file_at(folder.get(), std::to_string(fd), 64 << 20));
      const bool cloexec = file.info.cloexec;
      const uint64_t inode = file.info.ino;
      const bool locked = fdinfo_field(file.info, "lock:").has_value();
      const FdInfo info = locked ? file.info : FdInfo();
      if (locked) {
        file.link = task.proc.link("fd/" + std::to_string(fd));
        check_file_locks(file, options);
      }
      const Known known = describe_once(task, files_id, std::move(file));
      tables.add_number(files_id, fd, {inode, task.pid.get(), known.id});
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
      note_epoll(known->second, {files_id, slot.pid, slot.fd});
      return known->second;
    }
    file.link = task.proc.link("fd/" + std::to_string(file.fd));
    file.take(get_remote_fd(task.pidfd.get(), file.fd));
    const Known fresh = describe(slot, file);
    note_epoll(fresh, {files_id, slot.pid, slot.fd});
    return fresh;
  }

  /// One that was not seen before. It is known while it is dumped: a queue may hold its own socket.
  Known describe(const Slot& slot, OpenFile& file) {
    file.id = context.new_id();
    tables.add_description(file.info.ino);
    if (file.link.starts_with("/")) check_file_locks(file, options);
    const DumpKinds::One& one = kinds.of(file);
    if (!file.waits_at.empty()) check_waiting_descriptor(file, one.kind->type);
    const Known fresh{file.id, one.kind->type};
    descriptions[pre_key(file.info)].emplace(slot, fresh);
    one.dump->dump(file);
    return fresh;
  }

  uint32_t describe_waiting(const ProcDir& holder, Fd fd, const std::string& socket) {
    OpenFile file = waiting_file(holder, std::move(fd), socket);
    auto& bucket = descriptions[pre_key(file.info)];
    if (const auto known = bucket.find({::getpid(), file.ours.get()}); known != bucket.end()) return known->second.id;
    return describe({::getpid(), waiting.emplace_back(file.ours.dup()).get()}, file).id;
  }

  void note_epoll(const Known& known, const Holder& holder) {
    if (known.type == img::fd_types::EVENTPOLL) tables.add_holder(known.id, holder);
  }

  void dump_descriptors() {
    for (const StoppedTask& task : tasks)
      if (task.state != TaskState::zombie) dump_table(task, ids_of_tasks.at(task.pid.get()));
    for (const DumpKinds::One& one : kinds.all()) one.dump->dump_queues();
    for (const DumpKinds::One& one : kinds.all()) one.dump->finish(tables);
    descriptions.clear();
    waiting.clear();
  }

  template <class Dump>
  uint32_t add(const ProcDir& task, const std::string& link, uint32_t flags, Dump dump) {
    OpenFile file = file_by_link(task, link, flags);
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
      impl_->kinds.regular().dump(file);
    } catch (const Refusal& e) {
      throw refused_by_link(e, file, link);
    }
  });
}

uint32_t FileDumper::add_memfd(const ProcDir& task, const std::string& link, uint32_t flags) {
  return impl_->add(task, link, flags, [&](const OpenFile& file) { impl_->kinds.memfds().dump(file); });
}

std::vector<SharedObject> FileDumper::take_shared_objects() { return impl_->kinds.memfds().take_objects(); }

const std::vector<HeldLock>& FileDumper::locks() const { return impl_->locks.held(); }

void FileDumper::finish() {
  for (const DumpKinds::One& one : impl_->kinds.all()) one.dump->settle();
  impl_->images.write("files.img", magic::kFiles);  // present even without a single file
}

void FileDumper::tree_is_dead() noexcept {
  for (const DumpKinds::One& one : impl_->kinds.all()) one.dump->tree_is_dead();
}

void FileDumper::keep_links() noexcept { impl_->kinds.regular().keep_links(); }

}  // namespace migrate
