#include "core/restore/coordinator.h"

#include <linux/close_range.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>

#include "core/base/procfs.h"
#include "core/files/restore_files.h"
#include "core/image/magic.h"
#include "core/memory/page_files.h"
#include "core/restore/final_state.h"
#include "core/restore/messages.h"
#include "core/restore/namespaces.h"
#include "core/restore/restorer/protocol.h"
#include "core/restore/shell.h"
#include "core/restore/staging.h"

namespace migrate {
namespace {

constexpr int kLowestFloor = 64;

const char* step_name(restorer::Tag tag) {
  static constexpr std::array<const char*, static_cast<size_t>(restorer::Tag::count)> kNames{
      "unmap the shell's memory", "move memory into place", "map memory", "protect memory", "advise about memory",
      "lock memory", "place the vdso", "set the memory layout", "change folders", "set a signal action",
      "start a thread", "restore a timer", "set credentials", "set capabilities", "set a resource limit",
      "set scheduling", "set the name", "set the personality", "set the robust list", "set the signal stack",
      "register the restartable sequence", "set the tid address", "queue a pending signal",
      "set the parent-death signal", "set process flags", "register for membarrier"};
  return tag < restorer::Tag::count ? kNames[static_cast<size_t>(tag)] : "finish";
}

class Coordinator {
 public:
  Coordinator(const ImageSet& images, const RestoreOptions& options, bool userfault, Fd launcher,
              std::optional<GateWatch> gate)
      : options_(options),
        launcher_(std::move(launcher)),
        gate_(std::move(gate)),
        log_(socket_logger(launcher_.get())),
        context_{images, {}} {
    context_.own_namespaces = options.own_namespaces;
    context_.userfault = userfault;
  }

  [[noreturn]] void run() {
    try {
      settle();
      prepare();
      while (auto m = receive_message(launcher_.get())) handle(*m);
    } catch (...) {
      send_current_exception(launcher_.get(), 0);
      // The launcher discards everything; wait for that, so that it reads the message first.
      if (!self_sufficient_) wait_for_hangup();
    }
    if (self_sufficient_) go_on_alone();
    kill_shells();
    ::_exit(0);
  }

 private:
  /// Without the launcher: whoever thaws the gate does not know what has to be done then.
  [[noreturn]] void go_on_alone() {
    try {
      if (files_ && (!gate_ || gate_->wait() == GateWatch::Outcome::open)) (void)files_->after_gate();
    } catch (...) {
      // Nobody is left to be told.
    }
    end_or_stay();
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
    const int null = open_path("/dev/null", O_RDWR).release();  // closed below with what we inherited
    for (int fd = 0; fd <= 2; ++fd) check(::dup2(null, fd), "redirect", "the standard descriptors");
    constexpr int kHigh = 100;
    const Fd launcher = move_above(std::move(launcher_), kHigh);
    const Fd gate = gate_ ? move_above(std::move(gate_->file()), launcher.get() + 1) : Fd();
    log_.reset();
    const auto first = static_cast<unsigned>(launcher.get());
    const unsigned last = gate ? static_cast<unsigned>(gate.get()) : first;
    check(::close_range(3, first - 1, 0), "close", "inherited descriptors");
    if (last > first + 1) ::close_range(first + 1, last - 1, 0);
    ::close_range(last + 1, ~0u, 0);
    launcher_ = launcher.dup();
    if (gate) gate_->file() = gate.dup();
    log_ = socket_logger(launcher_.get());
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
    if (options_.own_namespaces) set_up_mounts(options_.root);
  }

  void prepare() {
    send_message(launcher_.get(), Msg::hello, 0);
    expect(Msg::go);
    context_.tasks = read_tree(context_.images);
    plan_tree(context_.tasks, options_.shell_job && !options_.own_namespaces);
    if (!options_.own_namespaces && context_.tasks.front().session_helper != 0) {
      throw Refusal("task " + std::to_string(context_.tasks.front().pid) + " belongs to a session that began outside of the tree",
                    "use --shell-job to restore it into the session you run in");
    }
    read_tasks();
    open_files();
    make_sockets();
    context_.launcher = above(launcher_.dup());
    fork_shells(context_, {0}, false, options_.own_namespaces ? 0 : CLONE_PARENT);
    for (Fd& fd : context_.shell_ends) fd.reset();
    await_all();
    for (const Msg step : {Msg::lead_groups, Msg::join_groups, Msg::let_helpers_go}) order_all(step, false);
    send_message(launcher_.get(), Msg::forked, 0);
    expect(Msg::go);
    order_all(Msg::stage, true);
    if (context_.userfault) offer_shared_memory();
    send_message(launcher_.get(), Msg::prepared, 0);
  }

  void expect(Msg wanted) {
    const auto m = receive_message(launcher_.get(), Deadline::in(options_.timeout));
    if (!m || m->type != wanted) throw Error("the launcher of the restore is gone");
  }

  /// Keeps a descriptor for us and the shells, numbered above the floor.
  int above(Fd fd) {
    kept_.push_back(move_above(std::move(fd), context_.floor));
    return kept_.back().get();
  }

  void read_tasks() {
    int highest = -1;
    for (const TaskNode& node : context_.tasks) {
      if (node.zombie) continue;
      images_of_.push_back(read_task(context_.images, node));
      highest = std::max(highest, highest_fd(context_.images, images_of_.back().ids.files_id()));
    }
    context_.floor = std::max(kLowestFloor, highest + 1);
    context_.coordinator_pidfd = above(std::move(open_pidfd(::getpid()).value()));
  }

  void open_mapped(uint64_t id, int access) {
    const MappedFile key{id, access};
    if (context_.files.contains(key)) return;
    if (id == 0 || id > UINT32_MAX) throw Corrupt("the memory images", "a file id is out of range");
    context_.files.emplace(key, above(files_->open_file(static_cast<uint32_t>(id), access)));
  }

  void open_files() {
    FileRestoreOptions file_options;
    file_options.tcp_close = options_.tcp_close;
    file_options.shell_job = options_.shell_job;
    if (!options_.root.empty() && !options_.own_namespaces) {
      root_ = open_path(options_.root, O_PATH | O_DIRECTORY);
      file_options.root_fd = root_.get();
    }
    files_ = std::make_unique<FileRestorer>(context_.images, file_options, *log_);
    std::map<uint64_t, uint64_t> shared_sizes;
    for (const TaskImage& task : images_of_) {
      open_mapped(task.mm.exe_file_id(), O_RDONLY);
      open_mapped(task.fs.cwd_id(), O_RDONLY);
      if (task.fs.root_id() != 0) open_mapped(task.fs.root_id(), O_RDONLY);
      for (const ImageVma& v : task.vmas) {
        if (v.has_file()) open_mapped(v.object, v.open_flags);
        if (v.has(kVmaAnonShared) && !v.has_file())
          shared_sizes[v.object] = std::max(shared_sizes[v.object], v.pgoff + v.bytes());
      }
    }
    for (const auto& [id, bytes] : shared_sizes) make_shared_memory(id, bytes);
  }

  /// Shared anonymous memory (shown as /dev/zero) has a descriptor only through map_files.
  void make_shared_memory(uint64_t id, uint64_t bytes) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw Error("make shared memory of bytes", std::to_string(bytes), errno);
    const auto start = reinterpret_cast<uint64_t>(at);
    std::array<char, 96> link;
    std::snprintf(link.data(), link.size(), "/proc/self/map_files/%lx-%lx", start, start + bytes);
    context_.shared_memory.emplace(id, above(open_path(link.data(), O_RDWR)));
    ::munmap(at, bytes);
    shared_.push_back({id, bytes, context_.shared_memory.at(id)});
  }

  void make_sockets() {
    for (size_t i = 0; i < context_.tasks.size(); ++i) {
      SocketPair pair = SocketPair::make();
      context_.coordinator_ends.push_back(move_above(std::move(pair.first), context_.floor));
      context_.shell_ends.push_back(move_above(std::move(pair.second), context_.floor));
    }
  }

  /// The answer of one shell; a failure of the shell is thrown.
  Message answer(size_t i) {
    auto m = receive_message(context_.coordinator_ends[i].get(), Deadline::in(options_.timeout));
    const pid_t pid = context_.tasks[i].pid;
    if (!m) throw Error("the shell of task " + std::to_string(pid) + " died");
    rethrow_failure(*m);
    return std::move(*m);
  }

  void await_all() {
    for (size_t i = 0; i < context_.tasks.size(); ++i) answer(i);
  }

  void order_all(Msg order, bool living, std::span<const int> fds = {}) {
    for (size_t i = 0; i < context_.tasks.size(); ++i)
      if (!living || !context_.tasks[i].zombie) send_message(context_.coordinator_ends[i].get(), order, 0, {}, fds);
    if (order == Msg::finish) return;
    for (size_t i = 0; i < context_.tasks.size(); ++i)
      if (!living || !context_.tasks[i].zombie) answer(i);
  }

  struct Shared {
    uint64_t id, bytes;
    int fd;
  };

  std::vector<Shared> all_shared_memory() {
    std::vector<Shared> all = shared_;
    for (const auto& [id, fd] : files_->shared_objects()) {
      struct stat st{};
      check(::fstat(fd.get(), &st), "stat", "a memory file");
      all.push_back({id, static_cast<uint64_t>(st.st_size), fd.get()});
    }
    return all;
  }

  void offer_shared_memory() {
    for (const Shared& s : all_shared_memory()) {
      FillTarget target;
      target.memory = {MemoryId::Kind::shmem, s.id};
      target.mem = Fd(check(::fcntl(s.fd, F_DUPFD_CLOEXEC, 0), "duplicate", "a memory file"));
      target.ranges.push_back({0, page_ceil(s.bytes), 0, false});
      send_target(launcher_.get(), target);
    }
  }

  void fill_shared_memory(PageImages& pages) {
    std::vector<std::byte> buffer(1 << 20);
    for (const Shared& s : all_shared_memory()) {
      for (StoredPages run : pages.locate(pagemap_name({MemoryId::Kind::shmem, s.id}))) {
        if (run.address + run.bytes > page_ceil(s.bytes)) throw Corrupt("the pagemap of shared memory", "it is too long");
        while (run.bytes != 0) {
          const size_t n = std::min<uint64_t>(run.bytes, buffer.size());
          const std::span<std::byte> part(buffer.data(), n);
          if (pread_full(run.fd, part, run.offset, "a pages image") != n)
            throw Corrupt("the pages image of shared memory", "it is too short");
          // The last page of a memory file may be partly behind its end.
          const size_t inside = std::min<uint64_t>(n, s.bytes > run.address ? s.bytes - run.address : 0);
          pwrite_full(s.fd, part.first(inside), run.address, "shared memory");
          run = {run.address + n, run.bytes - n, run.fd, run.offset + n};
        }
      }
    }
  }

  void handle(Message& m) {
    switch (m.type) {
      case Msg::fill: {
        if (m.fds.empty()) throw Error("receive", "the image folder", EBADMSG);
        const std::array<int, 1> fds{m.fds[0].get()};
        order_all(Msg::fill, true, fds);
        PageImages pages(m.fds[0].get());
        fill_shared_memory(pages);
        return send_message(launcher_.get(), Msg::ok, 0);
      }
      case Msg::finish: return finish(m);
      case Msg::detach:
        detach();
        return send_message(launcher_.get(), Msg::ok, 0);
      case Msg::open: return open(!m.body.empty());
      case Msg::go: return after_gate();
      default: throw Error("the coordinator got a message that it does not know");
    }
  }

  void finish(Message& m) {
    if (m.fds.empty()) throw Error("receive", "the final images", EBADMSG);
    final_images_ = unpack_images(m.fds[0].get());
    images_of_.clear();
    for (const TaskNode& node : context_.tasks)
      if (!node.zombie) images_of_.push_back(read_task(final_images_, node));
    files_->open_all();
    const Fd table = pack_table(files_->opened());
    const std::array<int, 2> fds{m.fds[0].get(), table.get()};
    order_all(Msg::finish, true, fds);
    size_t next = 0;
    for (size_t i = 0; i < context_.tasks.size(); ++i)
      if (!context_.tasks[i].zombie) waiting_.push_back(await_blob(i, images_of_[next++]));
    for (const WaitingTask& task : waiting_) set_final_state(task, options_.timeout, *log_);
    traced_ = true;
    send_message(launcher_.get(), Msg::standing, 0);
  }

  WaitingTask await_blob(size_t i, const TaskImage& image) {
    const Message m = answer(i);
    restorer::BlobMessage blob{};
    if (m.body.size() + 8 != sizeof blob) throw Error("receive", "the restorer's report", EBADMSG);
    std::memcpy(reinterpret_cast<std::byte*>(&blob) + 8, m.body.data(), m.body.size());
    if (static_cast<uint32_t>(m.type) == restorer::kBlobReady)
      return {&image, blob.arg0, blob.arg1, context_.floor};
    std::array<char, 96> where;
    std::snprintf(where.data(), where.size(), " in thread %d (arguments %lx, %lx)", m.pid, blob.arg0, blob.arg1);
    throw Error(step_name(blob.tag), "of task " + std::to_string(image.pid) + where.data(), blob.error);
  }

  void detach() {
    if (!traced_) return;
    for (const TaskImage& task : images_of_) let_go(task);
    traced_ = false;
    // From here on the tree stands without us (in place) or with us as its init; without the launcher in any case.
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
    const std::unique_ptr<FileRestorer> files = std::move(files_);  // once, whatever happens
    for (const std::string& failure : files->after_gate()) text += failure + "\n";
    send_text(launcher_.get(), Msg::ok, 0, text);
    end_or_stay();
  }

  [[noreturn]] void end_or_stay() {
    files_.reset();
    context_.coordinator_ends.clear();
    context_.files.clear();
    kept_.clear();
    gate_.reset();
    if (!options_.own_namespaces) ::_exit(0);
    stay_as_init();
  }

  void kill_shells() {
    for (const TaskNode& node : context_.tasks)
      if (shells_exist()) ::kill(node.pid, SIGKILL);
  }
  bool shells_exist() const { return !context_.coordinator_ends.empty(); }

  /// Reaps until the last process of the namespace is gone; ends as the root task ended.
  [[noreturn]] void stay_as_init() {
    launcher_.reset();
    const pid_t root = context_.tasks.front().pid;
    int root_status = 0;
    for (;;) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, __WALL);
      if (pid == root) root_status = status;
      if (pid < 0 && errno == ECHILD) break;
    }
    ::_exit(WIFSIGNALED(root_status) ? 128 + WTERMSIG(root_status) : WEXITSTATUS(root_status));
  }

  RestoreOptions options_;
  Fd launcher_;
  std::optional<GateWatch> gate_;
  LoggerPtr log_;
  ShellContext context_;
  std::vector<Fd> kept_;
  Fd root_;
  std::unique_ptr<FileRestorer> files_;
  std::vector<TaskImage> images_of_;  ///< of the living tasks, in order
  std::vector<Shared> shared_;
  ImageSet final_images_;
  std::vector<WaitingTask> waiting_;
  bool traced_ = false;
  bool self_sufficient_ = false;  ///< the tree no longer ends with the launcher
};

}  // namespace

void run_coordinator(const ImageSet& images, const RestoreOptions& options, bool userfault, Fd launcher,
                     std::optional<GateWatch> gate) {
  Coordinator(images, options, userfault, std::move(launcher), std::move(gate)).run();
}

}  // namespace migrate
