#include "core/restore/restore.h"

#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/files/hidden_sockets.h"
#include "core/image/leave_out.h"
#include "core/restore/begin_afresh.h"
#include "core/restore/coordinator.h"
#include "core/restore/copy_memory.h"
#include "core/restore/lazy_restore.h"
#include "core/restore/messages.h"
#include "core/restore/namespaces.h"
#include "core/restore/restorable.h"
#include "core/restore/shell.h"
#include "core/restore/staging.h"

namespace migrate {
namespace {

void put_into_cgroup(const std::string& folder, pid_t pid) {
  const std::string procs = folder + "/cgroup.procs";
  const Fd file = open_path(procs, O_WRONLY);
  write_full(file.get(), as_bytes_of(std::to_string(pid)), procs);
}

}  // namespace

struct Restore::Impl {
  RestoreOptions options;
  Logger& log;
  FreezerCgroup* gate = nullptr;
  Fd coordinator;               ///< socket
  pid_t coordinator_pid = 0;    ///< as we number it
  pid_t init_pid = 0;           ///< of the tree's pid namespace, likewise; 0: it has none of its own
  std::vector<pid_t> order;     ///< tasks in the order of the tree, in its own numbers
  std::map<pid_t, pid_t> pids;  ///< the tree's number → ours
  std::map<pid_t, Fd> pidfds;   ///< by our number: a shell that ended may have been reaped, and its number be another's
  std::vector<FillTarget> targets;
  std::vector<LazyMemory> lazy;
  std::vector<MemoryId> cold;
  std::vector<std::string> socket_folders;
  bool opened = false;

  Impl(RestoreOptions o, Logger& l) : options(std::move(o)), log(l) {
    if (options.mark.empty()) options.mark = ".migrate-" + std::to_string(::getpid());
  }

  /// The next message that is not log, hello or target; failures are thrown.
  Message next(const Deadline& deadline) {
    for (;;) {
      auto m = receive_message(coordinator.get(), deadline);
      if (!m) throw Error("the coordinator of the restore died");
      if (m->type == Msg::log) {
        log.log(static_cast<LogLevel>(std::clamp(m->pid, 0, 5)), m->text());
      } else if (m->type == Msg::hello && m->pid != 0) {
        pids[m->pid] = m->sender;
        hold(m->sender);
      } else if (m->type == Msg::init) {
        init_pid = m->sender;
        hold(init_pid);
      } else if (m->type == Msg::target) {
        add_target_piece(targets, *m);
      } else if (m->type == Msg::lazy) {
        take_lazy(*m);
      } else {
        rethrow_failure(*m);
        return std::move(*m);
      }
    }
  }

  Message expect(Msg type) {
    Message m = next(Deadline::in(options.timeout + std::chrono::seconds(5)));
    if (m.type != type) throw Error("the coordinator of the restore answered out of order");
    return m;
  }

  Message order_and_expect(Msg order_type, Msg answer, std::span<const std::byte> body = {},
                           std::span<const int> fds = {}) {
    send_message(coordinator.get(), order_type, 0, body, fds);
    return expect(answer);
  }

  /// It has just said hello, and lives.
  void hold(pid_t pid) {
    if (auto pidfd = open_pidfd(pid)) pidfds[pid] = std::move(*pidfd);
  }
  void kill_held(pid_t pid) const {
    const auto held = pidfds.find(pid);
    if (held != pidfds.end()) ::syscall(SYS_pidfd_send_signal, held->second.get(), SIGKILL, nullptr, 0);
  }

  void take_lazy(Message& m);
  void start(const ImageSet& images);
  void enter_cgroups(pid_t pid);
  void leave_gate(pid_t pid);
  void advance(const ImageSet& images, const Fd& tree, bool final);
  void follow(const std::vector<TaskNode>& tasks, const ImageSet& images, const Fd& tree, bool final);
  void discard();
  /// It is about to end. Our child, or the init's.
  void await_end_of_coordinator() const {
    const auto held = pidfds.find(coordinator_pid);
    if (held == pidfds.end()) return;
    pollfd end{held->second.get(), POLLIN, 0};
    while (::poll(&end, 1, -1) < 0 && errno == EINTR) {
    }
    ::waitid(P_PIDFD, static_cast<id_t>(held->second.get()), nullptr, WEXITED | WNOHANG);
  }
  /// Who forks the root's shell.
  pid_t forefather() const { return init_pid != 0 ? init_pid : coordinator_pid; }
};

/// A short-lived child makes the namespaces, so that we stay in ours; the coordinator is its sibling, our child.
void Restore::Impl::start(const ImageSet& images) {
  raise_limit_of_files();       // a descriptor a task is held
  (void)own_kernel_mappings();  // so that nobody who is forked has to look
  SocketPair pair = SocketPair::make();
  const int on = 1;
  check(::setsockopt(pair.first.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "ask for credentials on", "a socket");
  const pid_t maker = fork_with_pid(0, options.sibling ? CLONE_PARENT : 0);
  if (maker == 0) {
    pair.first.reset();
    std::optional<GateWatch> watch;
    Fd init;
    try {
      if (gate != nullptr) watch.emplace(gate->record());
      init = enter_namespaces(images, options, order, pair.second);
    } catch (...) {
      send_current_exception(pair.second.get(), 0);
      ::_exit(1);
    }
    run_coordinator(options, std::move(pair.second), std::move(watch), std::move(init));
  }
  coordinator = std::move(pair.first);
  pair.second.reset();
  if (!options.sibling) ::waitpid(maker, nullptr, 0);
  coordinator_pid = expect(Msg::hello).sender;
  hold(coordinator_pid);
}

Restore::Restore(RestoreOptions options, Logger& log) : impl_(std::make_unique<Impl>(std::move(options), log)) {
  if (!left_out().empty()) log.warn("MIGRATE_TEST_LEAVE_OUT: {} not restored", left_out());
}

void Restore::leave_alone() noexcept {
  impl_->opened = true;
  impl_->coordinator.reset();
}

Restore::~Restore() {
  if (!impl_->opened) discard();
}

void Restore::Impl::enter_cgroups(pid_t pid) {
  for (const std::string& folder : options.cgroups) put_into_cgroup(folder, pid);
}

void Restore::Impl::leave_gate(pid_t pid) {
  for (const std::string& folder : gate->record().folders) put_into_cgroup(folder.substr(0, folder.rfind('/')), pid);
}

/// A task that waits for pages; which, finish() knows.
void Restore::Impl::take_lazy(Message& m) {
  if (m.fds.size() != 2 && m.fds.size() != 3) throw Error("receive", "a userfaultfd", EBADMSG);
  LazyMemory memory{.memory = {MemoryId::Kind::task, static_cast<uint64_t>(m.pid)}};
  if (m.pid == 0) {
    memory.memory = {MemoryId::Kind::shmem, parse_number<uint64_t>(m.text(), "a shared object's id")};
    memory.process = m.fds[0].dup();  // it has none
  } else {
    memory.process = pidfds.at(pids.at(m.pid)).dup();
  }
  memory.userfaultfd = std::move(m.fds[0]);
  for (const TreeLayout::Area& a : unpack_areas(m.fds[1].get()))
    memory.ranges.push_back({RemoteAddr(a.start), RemoteAddr(a.end)});
  if (m.fds.size() == 3) {
    memory.memory = kSharedMappings;
    for (const TreeLayout::Area& a : unpack_areas(m.fds[2].get()))
      memory.missing.push_back({a.start, (a.end - a.start) / kPageSize});
  }
  lazy.push_back(std::move(memory));
}

/// Makes shells and staging memory what `tree` (packed images or layout) wants.
void Restore::Impl::advance(const ImageSet& images, const Fd& tree, bool final) {
  const bool fresh = coordinator_pid == 0;
  targets.clear();
  if (fresh) {
    start(images);
    // Before they have memory or children: those are counted there, too.
    for (const pid_t pid : {init_pid, coordinator_pid})
      if (pid != 0) enter_cgroups(pid);
    // Shells are born in the gate because their forefather is there; it leaves before it matters.
    if (gate != nullptr) gate->add(Pid(forefather()));
  }
  const std::array<int, 1> fds{tree.get()};
  order_and_expect(Msg::tree, Msg::forked, as_bytes_of(final ? "i" : ""), fds);
  if (fresh && gate != nullptr) leave_gate(forefather());
  const Message m = order_and_expect(Msg::stage, Msg::prepared);
  if (m.fds.empty()) throw Error("receive", "what is cold", EBADMSG);
  cold = unpack_memories(m.fds[0].get());
}

void Restore::Impl::follow(const std::vector<TaskNode>& tasks, const ImageSet& images, const Fd& tree, bool final) {
  const bool fresh = coordinator_pid == 0;
  order.clear();
  for (const TaskNode& task : tasks) order.push_back(task.pid);
  try {
    try {
      advance(images, tree, final);
    } catch (const Error& e) {
      // Only what the shells could not do may be done by others.
      const bool final_word =
          dynamic_cast<const Refusal*>(&e) != nullptr || dynamic_cast<const Corrupt*>(&e) != nullptr;
      if (fresh || final_word) throw;
      log.info("the copy's processes are made anew, and all memory is sent again: {}", e.what());
      discard();
      advance(images, tree, final);
    }
  } catch (...) {
    discard();
    throw;
  }
  // Numbers of tasks that are gone may soon be those of others.
  const std::set<pid_t> living(order.begin(), order.end());
  std::erase_if(pids, [&](const auto& entry) { return !living.contains(entry.first); });
  std::erase_if(pidfds, [&](const auto& entry) {
    const auto is_its = [&](const auto& pair) { return pair.second == entry.first; };
    return entry.first != coordinator_pid && entry.first != init_pid && std::none_of(pids.begin(), pids.end(), is_its);
  });
}

std::vector<MemoryId> Restore::warm(const TreeLayout& layout, FreezerCgroup* gate) {
  impl_->gate = gate;
  impl_->follow(read_tree(layout), ImageSet{}, pack_layout(layout), false);
  return impl_->cold;
}

void Restore::prepare(const ImageSet& images, FreezerCgroup* gate) {
  impl_->gate = gate;
  impl_->socket_folders = unix_socket_folders(images);
  impl_->follow(read_tree(images), images, pack_images(images), true);
}

const std::vector<MemoryId>& Restore::cold() const { return impl_->cold; }

void Restore::discard_pages(std::span<const PageDiscard> discards) {
  if (discards.empty()) return;
  const Fd packed = pack_discards(discards);
  const std::array<int, 1> fds{packed.get()};
  try {
    impl_->order_and_expect(Msg::discard, Msg::ok, {}, fds);
  } catch (...) {
    discard();
    throw;
  }
}

void Restore::reserve_pages(std::span<const PageReserve> pages) {
  if (pages.empty()) return;
  const Fd packed = pack_reserves(pages);
  const std::array<int, 1> fds{packed.get()};
  try {
    impl_->order_and_expect(Msg::reserve, Msg::ok, {}, fds);
  } catch (...) {
    discard();
    throw;
  }
}

std::vector<FillTarget> Restore::take_fill_targets() { return std::move(impl_->targets); }

PagesByMemory Restore::fill_from(int image_dirfd) {
  impl_->targets.clear();
  const std::array<int, 1> fds{image_dirfd};
  try {
    send_message(impl_->coordinator.get(), Msg::fill, 0, {}, fds);
    // Bounded by the coordinator's own waits for its shells, not by a time of ours: there may be much to read.
    const Message m = impl_->next(Deadline::in(std::chrono::hours(24)));
    if (m.type != Msg::ok) throw Error("the coordinator of the restore answered out of order");
    if (!impl_->options.lazy) return {};
    PageImages pages(image_dirfd);
    return lazy_in_images(ImageSet::load(image_dirfd), pages);
  } catch (...) {
    discard();
    throw;
  }
}

void Restore::finish(const ImageSet& images, const PagesByMemory& missing) {
  Impl& r = *impl_;
  r.targets.clear();
  try {
    const Fd packed = pack_images(images), waiting = missing.empty() ? Fd() : pack_pages(missing);
    const std::array<int, 2> fds{packed.get(), waiting.get()};
    r.order_and_expect(Msg::finish, Msg::standing, {}, std::span(fds).first(waiting ? 2 : 1));
    for (LazyMemory& memory : r.lazy)
      if (memory.memory != kSharedMappings) memory.missing = runs_of(missing.at(memory.memory), {});
    if (r.gate == nullptr) return;
    r.gate->freeze(r.options.timeout);
    r.order_and_expect(Msg::detach, Msg::ok);
  } catch (...) {
    discard();
    throw;
  }
}

std::vector<LazyMemory> Restore::take_lazy_memories() { return std::move(impl_->lazy); }

void Restore::open_gate(bool leave_stopped) {
  Impl& r = *impl_;
  const std::string flag = leave_stopped ? "s" : "";
  r.order_and_expect(Msg::open, Msg::ok, as_bytes_of(flag));
  r.opened = true;
  if (r.gate != nullptr) r.gate->thaw();
  const Message done = r.order_and_expect(Msg::go, Msg::ok);
  if (!done.body.empty()) r.log.error("{}", done.text());
  r.coordinator.reset();
  r.await_end_of_coordinator();
}

void Restore::discard() { impl_->discard(); }

void Restore::Impl::discard() {
  targets.clear();
  lazy.clear();
  std::vector<pid_t> ours;
  for (const auto& [inside, outside] : pids) ours.push_back(outside);
  // The coordinator late: until then it is the tracer. Its namespace's init, who reaps it, last.
  for (const pid_t pid : {coordinator_pid, init_pid})
    if (pid != 0) ours.push_back(pid);
  for (const pid_t pid : ours) kill_held(pid);
  if (gate != nullptr && !ours.empty()) {
    try {
      gate->kill_all(options.timeout);
    } catch (const Error& e) {
      log.warn("{}", e.what());
    }
  }
  coordinator.reset();
  // Those that are our children.
  for (const auto& [pid, pidfd] : pidfds) ::waitid(P_PIDFD, static_cast<id_t>(pidfd.get()), nullptr, WEXITED);
  remove_hidden_sockets(socket_folders, options.root, options.mark);
  pids.clear();
  pidfds.clear();
  coordinator_pid = init_pid = 0;
}

uint64_t Restore::memory_bytes() {
  Impl& r = *impl_;
  if (r.coordinator_pid == 0 || !r.coordinator) return 0;
  uint64_t bytes = 0;
  const Message m = r.order_and_expect(Msg::memory, Msg::ok);
  if (m.body.size() != sizeof bytes) throw Error("receive", "how much memory the copy has", EBADMSG);
  std::memcpy(&bytes, m.body.data(), sizeof bytes);
  // What shells have in common with whom they were forked from counts for each of them as its own.
  const uint64_t inherited = private_memory(r.forefather(), r.init_pid != 0 ? 1 : r.coordinator_pid);
  for (const auto& [inside, outside] : r.pids) {
    const uint64_t all = private_memory(outside, inside);
    bytes += all - std::min(all, inherited);
  }
  return bytes;
}

Pid Restore::root() const { return impl_->order.empty() ? Pid() : Pid(impl_->pids.at(impl_->order.front())); }

std::vector<Pid> Restore::tasks() const {
  std::vector<Pid> all;
  for (const pid_t inside : impl_->order)
    if (const auto it = impl_->pids.find(inside); it != impl_->pids.end()) all.emplace_back(it->second);
  return all;
}

Pid Restore::init() const { return Pid(impl_->init_pid); }

}  // namespace migrate
