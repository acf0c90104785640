#include "core/restore/coordinator.h"

#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>
#include <utility>

#include "core/base/procfs.h"
#include "core/files/restore_files.h"
#include "core/files/terminal_pairs.h"
#include "core/image/magic.h"
#include "core/memory/page_files.h"
#include "core/memory/page_scan.h"
#include "core/restore/begin_afresh.h"
#include "core/restore/copy_memory.h"
#include "core/restore/file_holders.h"
#include "core/restore/final_state.h"
#include "core/restore/lazy_registration.h"
#include "core/restore/memory_policies.h"
#include "core/restore/messages.h"
#include "core/restore/namespaces.h"
#include "core/restore/page_orders.h"
#include "core/restore/restorable.h"
#include "core/restore/restorer/protocol.h"
#include "core/restore/session_terminal.h"
#include "core/restore/shared_memory.h"
#include "core/restore/shells.h"
#include "core/restore/socket_orders.h"
#include "core/restore/staging.h"

namespace migrate {
namespace {

constexpr const char* kCoordinator = "migrate: restores a tree";

const char* step_name(restorer::Tag tag) {
  static constexpr std::array<const char*, static_cast<size_t>(restorer::Tag::count)> kNames{
      "unmap the shell's memory",
      "move memory into place",
      "map memory",
      "protect memory",
      "advise about memory",
      "lock memory",
      "place the vdso",
      "set the memory layout",
      "change folders",
      "set a signal action",
      "start a thread",
      "restore a timer",
      "set credentials",
      "set capabilities",
      "set a resource limit",
      "set scheduling",
      "set the name",
      "set the personality",
      "set the robust list",
      "set the signal stack",
      "register the restartable sequence",
      "set the tid address",
      "queue a pending signal",
      "set the parent-death signal",
      "set process flags",
      "set the memory policy",
      "register for membarrier",
      "seal memory"};
  return tag < restorer::Tag::count ? kNames[static_cast<size_t>(tag)] : "finish";
}

class Coordinator {
 public:
  Coordinator(const RestoreOptions& options, Fd launcher, std::optional<GateWatch> gate, Fd init)
      : options_(options),
        launcher_(std::move(launcher)),
        init_(std::move(init)),
        gate_(std::move(gate)),
        log_(socket_logger(launcher_.get())) {}

  [[noreturn]] void run() {
    try {
      settle();
      make_ready();
      while (auto m = receive_message(launcher_.get())) handle(*m);
    } catch (...) {
      send_current_exception(launcher_.get(), 0);
      // The launcher discards everything; wait for that, so that it reads the message first.
      if (!self_sufficient_) wait_for_hangup();
    }
    if (self_sufficient_) go_on_alone();
    if (shells_) shells_->kill();
    ::_exit(0);
  }

 private:
  /// Without the launcher: whoever thaws the gate does not know what has to be done then.
  [[noreturn]] void go_on_alone() {
    try {
      if (files_ && (!gate_ || gate_->wait() == GateWatch::Outcome::open || root_lives())) (void)files_->after_gate();
    } catch (...) {
      // Nobody is left to be told.
    }
    leave();
  }

  /// With its gate gone: it was opened, and taken away at once.
  bool root_lives() const {
    try {
      return ProcDir(shells_->tasks().front().pid).stat().state != 'Z';
    } catch (const Error&) {
      return false;
    }
  }

  void wait_for_hangup() noexcept {
    try {
      while (receive_message(launcher_.get())) {
      }
    } catch (...) {
    }
  }

  /// Gives up what came from the launcher, and dies with it until the tree can do without.
  void settle() {
    if (!options_.sibling) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (options_.terminal >= 0)
      terminal_ = Fd(check(::fcntl(options_.terminal, F_DUPFD_CLOEXEC, 3), "duplicate", "the terminal"));
    log_.reset();
    std::vector<Fd*> kept{&launcher_, &terminal_, &init_};
    if (gate_)
      for (Fd* file : gate_->files()) kept.push_back(file);
    begin_afresh(std::move(kept));
    log_ = socket_logger(launcher_.get());
    if (!options_.own_namespaces) return;
    show_as(kCoordinator);
    check(::setsid(), "start", "a session");
    set_up_mounts(options_.root);
  }

  /// The tree's init does what it is told, or says why not.
  void order_init(Msg type) {
    send_message(init_.get(), type, 0);
    await_init();
  }
  void await_init() { (void)receive_answer(init_.get(), Deadline::in(options_.timeout), kTreesInit); }

  void make_ready() {
    pidfd_ = move_above(std::move(open_pidfd(::getpid()).value()), kLowestFloor);
    shells_launcher_ = move_above(launcher_.dup(), kLowestFloor);
    if (init_) await_init();  // the launcher knows it by then
    shells_.emplace(shells_launcher_.get(), pidfd_.get(), init_.get(), options_);
    send_message(launcher_.get(), Msg::hello, 0);
  }

  /// The tasks that there are now: from a layout while the source runs, or from the final images.
  void take_tree(Message& m) {
    if (m.fds.empty()) throw Error("receive", "the tree", EBADMSG);
    final_ = !m.body.empty();
    if (final_) {
      packed_images_ = std::move(m.fds[0]);
      images_ = unpack_images(packed_images_.get());
      if (shells_->exist()) check_clocks();
    } else {
      layout_ = unpack_layout(m.fds[0].get());
    }
    std::vector<TaskNode> tasks = final_ ? read_tree(images_) : read_tree(layout_);
    make_terminals(tasks);
    if (shells_->exist()) {
      shells_->follow(std::move(tasks));
    } else {
      shells_->build(std::move(tasks));
    }
    send_message(launcher_.get(), Msg::forked, 0);
  }

  /// Those of sessions: their leaders need them before they have children.
  void make_terminals(std::vector<TaskNode>& tasks) {
    std::set<uint32_t> wanted;
    for (const TaskNode& t : tasks)
      if (t.pid == t.sid && t.terminal >= 0) wanted.insert(static_cast<uint32_t>(t.terminal));
    terminals_.make(wanted);
    for (TaskNode& t : tasks)
      if (t.pid == t.sid && t.terminal >= 0) t.terminal_fd = terminals_.slave(static_cast<uint32_t>(t.terminal));
  }

  /// Clocks that were set before the images were made must not go backwards.
  void check_clocks() {
    const auto dumped = dumped_monotonic_ns(images_);
    if (!dumped) return;
    constexpr int64_t kSecond = 1'000'000'000;
    const int64_t ahead = clock_ns(CLOCK_MONOTONIC) - *dumped;
    if (ahead < -kSecond / 5 || (!options_.clocks && ahead > 10 * kSecond))
      throw Error("the clocks of the shells do not go on from those of the source");
    if (ahead < 0) ::usleep(static_cast<useconds_t>(-ahead / 1000 + 1));
  }

  /// Staging memory and shared objects, as the tree taken last wants them.
  void stage() {
    std::vector<MemoryId> cold = final_ ? stage_final() : stage_layout();
    const Fd packed = pack_memories(cold);
    const std::array<int, 1> fds{packed.get()};
    send_message(launcher_.get(), Msg::prepared, 0, {}, fds);
  }

  static Shells::Answered collect(std::vector<MemoryId>& cold) {
    return [&cold](const TaskNode& task, const Message& m) {
      if (!m.body.empty()) cold.push_back({MemoryId::Kind::task, static_cast<uint64_t>(task.pid)});
    };
  }

  std::vector<MemoryId> stage_layout() {
    std::vector<MemoryId> cold;
    for (size_t i = 0; i < layout_.tasks.size(); ++i) {
      const Fd areas = pack_areas(layout_.tasks[i].areas);
      const std::array<int, 1> fds{areas.get()};
      shells_->send(shells_->tasks()[i], Msg::areas, fds);
    }
    const auto answered = collect(cold);
    for (const TaskNode& task : shells_->tasks()) answered(task, shells_->answer(task));
    std::map<uint64_t, SharedMemory::Wanted> wanted;
    for (const TreeLayout::Object& o : layout_.objects) wanted[o.id] = {page_ceil(o.bytes), o.memfd, o.name, o.segment};
    for (const uint64_t id : shared_.follow(wanted, ipc_)) cold.push_back({MemoryId::Kind::shmem, id});
    for (const SharedMemory::Object& o : shared_.objects()) offer(o.id, o.bytes, o.fd.get());
    return cold;
  }

  std::vector<MemoryId> stage_final() {
    read_tasks();
    std::vector<MemoryId> cold;
    for (const uint64_t id : open_files()) cold.push_back({MemoryId::Kind::shmem, id});
    shells_->end_zombies(packed_images_.get());
    resources_.room = find_room();
    const Fd resources = pack_resources(resources_);
    for (const TaskNode& task : shells_->tasks()) {
      if (task.zombie) continue;
      const Fd threads = pack_threads(task.threads);
      const std::array<int, 3> fds{packed_images_.get(), resources.get(), threads.get()};
      shells_->send(task, Msg::stage, fds);
    }
    const auto answered = collect(cold);
    for (const TaskNode& task : shells_->tasks()) {
      if (task.zombie) continue;
      Message m = shells_->answer(task);
      answered(task, m);
      if (!m.fds.empty()) userfaultfds_[task.pid].own = std::move(m.fds[0]);
      if (m.fds.size() > 1) userfaultfds_[task.pid].shared = std::move(m.fds[1]);
    }
    for (const SharedMemory::Object& o : shared_.objects()) offer(o.id, o.bytes, o.fd.get());
    for (const auto& [id, fd] : files_->shared_objects()) {
      offer(id, object_size(fd.get()), fd.get());
      if (!files_->is_warm(id)) cold.push_back({MemoryId::Kind::shmem, id});
    }
    return cold;
  }

  void offer(uint64_t id, uint64_t bytes, int fd) {
    FillTarget target;
    target.memory = {MemoryId::Kind::shmem, id};
    target.mem = Fd(check(::fcntl(fd, F_DUPFD_CLOEXEC, 0), "duplicate", "a memory file"));
    target.ranges.push_back({0, page_ceil(bytes), 0, false});
    send_target(launcher_.get(), target);
  }

  void discard(const Message& m) {
    if (m.fds.empty()) throw Error("receive", "pages to give back", EBADMSG);
    discard_pages(*shells_, shared_, files_.get(), unpack_discards(m.fds[0].get()));
    send_message(launcher_.get(), Msg::ok, 0);
  }

  void reserve(const Message& m) {
    if (m.fds.empty()) throw Error("receive", "pages to make ready", EBADMSG);
    reserve_pages(*shells_, unpack_reserves(m.fds[0].get()));
    send_message(launcher_.get(), Msg::ok, 0);
  }

  void read_tasks() {
    images_of_ = migrate::read_tasks(images_, shells_->tasks());
    if (options_.detached) forget_parent_of_root();
    check_tables(images_of_);
    const uint64_t nodes = usable_nodes();
    for (const TaskImage& task : images_of_) check_policies(task, nodes);
  }

  /// Its parent ends with the restore, which is no death that it was to hear of.
  void forget_parent_of_root() {
    const TaskNode& root = shells_->tasks().front();
    if (root.zombie) return;
    for (img::core_entry& core : images_of_.front().cores) {
      if (core.thread_core().pdeath_sig() == 0) continue;
      log_->warn("task {}: signal {} at its parent's death (PR_SET_PDEATHSIG) is given up, since it has none with -d",
                 root.pid, core.thread_core().pdeath_sig());
      core.mutable_thread_core()->set_pdeath_sig(0);
    }
  }

  DescriptorRoom find_room() const {
    rlimit limit{};
    check(::getrlimit(RLIMIT_NOFILE, &limit), "read", "the limit of open files");
    return find_descriptor_room(images_, resources_.needed(), limit.rlim_cur);
  }

  /// Returns the shared objects that are new.
  std::vector<uint64_t> open_files() {
    FileRestoreOptions file_options;
    file_options.tcp_close = options_.tcp_close;
    file_options.terminal = terminal_.get();
    file_options.terminals = &terminals_;
    file_options.open_controlling = [this](uint32_t index, int flags) {
      return open_controlling(*shells_, terminals_, index, flags);
    };
    file_options.mark = options_.mark;
    const RootFolders roots = root_folders(images_of_, images_);
    file_options.holders = table_holders(images_of_, roots);
    file_options.by_root = options_.files_by_root;
    if (!options_.files_by_root) file_options.owners = ids_of(images_of_);
    file_options.make_sockets = [this](const PeerCredentials& who, std::span<const SocketStep> steps) {
      return order_sockets(*shells_, who, steps, *log_);
    };
    if (!options_.root.empty() && !options_.own_namespaces) {
      root_ = open_path(options_.root, O_PATH | O_DIRECTORY);
      file_options.root_fd = root_.get();
    }
    files_ = std::make_unique<FileRestorer>(images_, file_options, *log_, shared_.take_memfds());
    open_mapped(roots);
    std::map<uint64_t, SharedMemory::Wanted> wanted = wanted_objects(images_of_);
    const std::optional<IpcImages> ipc = read_ipc_images(images_);
    if (ipc && !options_.files_by_root) {
      const UserIds own = ids_of(images_of_);
      check_ipc_owners(*ipc, own.uids, own.gids);
    }
    if (ipc) add_segments(ipc->segments, wanted);
    check_segments(images_of_, wanted);
    std::vector<uint64_t> fresh = shared_.follow(wanted, ipc_);
    if (ipc) ipc_.make_objects(*ipc, options_.files_by_root);
    resources_.own_ipc = ipc_.entered();
    for (const SharedMemory::Object& o : shared_.objects())
      if (!o.segment) resources_.shared_memory.emplace(o.id, o.fd.get());
    return fresh;
  }

  void open_mapped(const RootFolders& roots) {
    const std::map<MappedFile, WantedFile> keyed = wanted_files(images_of_, roots);
    std::vector<WantedFile> wanted;
    wanted.reserve(keyed.size());
    for (const auto& [key, file] : keyed) wanted.push_back(file);
    kept_ = files_->open_files(wanted);
    size_t next = 0;
    for (const auto& [key, file] : keyed) resources_.files.emplace(key, kept_[next++].get());
  }

  void fill_shared_memory(PageImages& pages) {
    for (const SharedMemory::Object& o : shared_.objects()) fill_object(pages, o.id, o.fd.get(), o.bytes);
    for (const auto& [id, fd] : files_->shared_objects()) fill_object(pages, id, fd.get(), object_size(fd.get()));
  }

  void tell_memory() {
    uint64_t bytes = 0;
    for (const SharedMemory::Object& o : shared_.objects()) bytes += object_memory(o.fd.get());
    if (files_)
      for (const auto& [id, fd] : files_->shared_objects()) bytes += object_memory(fd.get());
    send_message(launcher_.get(), Msg::ok, 0, std::as_bytes(std::span(&bytes, 1)));
  }

  void handle(Message& m) {
    switch (m.type) {
      case Msg::fill: {
        if (m.fds.empty()) throw Error("receive", "the image folder", EBADMSG);
        const std::array<int, 1> fds{m.fds[0].get()};
        shells_->order_living(Msg::fill, fds);
        PageImages pages(m.fds[0].get());
        fill_shared_memory(pages);
        return send_message(launcher_.get(), Msg::ok, 0);
      }
      case Msg::tree:
        return take_tree(m);
      case Msg::stage:
        return stage();
      case Msg::discard:
        return discard(m);
      case Msg::reserve:
        return reserve(m);
      case Msg::memory:
        return tell_memory();
      case Msg::finish:
        return finish(m);
      case Msg::detach:
        detach();
        return send_message(launcher_.get(), Msg::ok, 0);
      case Msg::open:
        return open(!m.body.empty());
      case Msg::go:
        return after_gate();
      default:
        throw Error("the coordinator got a message that it does not know");
    }
  }

  void finish(Message& m) {
    if (m.fds.empty()) throw Error("receive", "the final images", EBADMSG);
    const PagesByMemory missing = m.fds.size() > 1 ? unpack_pages(m.fds[1].get()) : PagesByMemory();
    final_images_ = unpack_images(m.fds[0].get());
    images_of_ = migrate::read_tasks(final_images_, shells_->tasks());
    files_->open_all(dumped_monotonic_ns(final_images_));
    set_foreground_groups(*shells_, terminals_, final_images_);
    const Fd table = pack_table(files_->opened());
    const std::array<int, 2> fds{m.fds[0].get(), table.get()};
    for (const TaskNode& node : shells_->tasks())
      if (!node.zombie) shells_->send(node, Msg::finish, fds);
    size_t next = 0;
    for (const TaskNode& node : shells_->tasks())
      if (!node.zombie) waiting_.push_back(await_blob(node, images_of_[next++]));
    ipc_.finish();
    terminals_.clear();  // their masters must see when the last of the tree closes one
    set_final_states(missing);
    send_message(launcher_.get(), Msg::standing, 0);
  }

  void set_final_states(const PagesByMemory& missing) {
    const LazyRegistration lazy(launcher_.get(), images_of_, missing, std::exchange(userfaultfds_, {}));
    for (const WaitingTask& task : waiting_) seize_task(*task.image, options_.timeout);
    for (WaitingTask& task : waiting_) {
      task.stopped_children = stopped_children(*task.image);
      task.elapsed_ns = elapsed_since_dump_ns(final_images_);
      std::function<void()> register_missing;
      if (options_.lazy) register_missing = [&] { lazy.register_private(*task.image); };
      set_final_state(task, options_.timeout, register_missing);
    }
    traced_ = true;
    lazy.register_shared(shared_);
  }

  std::vector<pid_t> stopped_children(const TaskImage& parent) const {
    constexpr uint32_t kTaskStopped = 3;  // CRIU's task state
    std::vector<pid_t> children;
    size_t next = 0;
    for (const TaskNode& node : shells_->tasks()) {
      if (node.zombie) continue;
      const TaskImage& task = images_of_[next++];
      if (node.ppid == parent.pid && task.core().tc().task_state() == kTaskStopped)
        children.push_back(task.task_extra().stop_collected() ? task.pid : 0);
    }
    return children;
  }

  WaitingTask await_blob(const TaskNode& node, const TaskImage& image) {
    const Message m = shells_->answer(node);
    restorer::BlobMessage blob{};
    if (m.body.size() + 8 != sizeof blob) throw Error("receive", "the restorer's report", EBADMSG);
    std::memcpy(reinterpret_cast<std::byte*>(&blob) + 8, m.body.data(), m.body.size());
    if (static_cast<uint32_t>(m.type) == restorer::kBlobReady) return {&image, blob.arg0, blob.arg1, resources_.room};
    std::array<char, 96> where;
    std::snprintf(where.data(), where.size(), " in thread %d (arguments %lx, %lx)", m.pid, blob.arg0, blob.arg1);
    throw Error(step_name(blob.tag), "of task " + std::to_string(image.pid) + where.data(), blob.error);
  }

  void detach() {
    if (!traced_) return;
    if (init_) order_init(Msg::detach);
    for (const TaskImage& task : images_of_) let_go(task);
    traced_ = false;
    // From here on the tree stands without us, and without the launcher.
    self_sufficient_ = true;
    ::prctl(PR_SET_PDEATHSIG, 0);
  }

  void open(bool leave_stopped) {
    if (leave_stopped)
      for (const TaskImage& task : images_of_) ::kill(task.pid, SIGSTOP);
    detach();
    send_message(launcher_.get(), Msg::ok, 0);
  }

  void after_gate() {
    std::string text;
    {
      const std::unique_ptr<FileRestorer> files = std::move(files_);  // once, whatever happens
      for (const std::string& failure : files->after_gate()) text += failure + "\n";
    }
    forget_files();
    send_text(launcher_.get(), Msg::ok, 0, text);
    leave();
  }

  /// Before anybody hears that the tree runs: who looks at it then must not find its files open outside of it.
  void forget_files() {
    files_.reset();
    terminal_.reset();
    kept_.clear();
    packed_images_.reset();
    shared_ = {};
    ipc_.leave();
  }

  [[noreturn]] void leave() {
    forget_files();
    ::_exit(0);
  }

  RestoreOptions options_;
  Fd launcher_, init_;
  std::optional<GateWatch> gate_;
  LoggerPtr log_;
  Fd pidfd_, shells_launcher_;  ///< inherited by the shells
  std::optional<Shells> shells_;
  bool final_ = false;  ///< the tree taken last is that of the final images
  TreeLayout layout_;
  Fd packed_images_;
  ImageSet images_;  ///< those staged for
  Resources resources_;
  SharedMemory shared_;
  IpcRestorer ipc_;
  TerminalPairs terminals_;
  std::vector<Fd> kept_;
  Fd root_, terminal_;
  std::unique_ptr<FileRestorer> files_;
  std::vector<TaskImage> images_of_;  ///< of the living tasks, in order
  ImageSet final_images_;
  std::vector<WaitingTask> waiting_;
  std::map<pid_t, LazyUserfaultfds> userfaultfds_;  ///< RestoreOptions::lazy; by task, in the tree's numbers
  bool traced_ = false;
  bool self_sufficient_ = false;  ///< the tree no longer ends with the launcher
};

}  // namespace

void run_coordinator(const RestoreOptions& options, Fd launcher, std::optional<GateWatch> gate, Fd init) {
  Coordinator(options, std::move(launcher), std::move(gate), std::move(init)).run();
}

}  // namespace migrate
