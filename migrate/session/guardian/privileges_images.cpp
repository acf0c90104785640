// privileges_of(): what the images hold.
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <climits>
#include <map>

#include "core/base/error.h"
#include "core/files/image_tables.h"
#include "core/files/raw_socket.h"
#include "core/files/waiting_descriptor.h"
#include "core/image/magic.h"
#include "core/restore/tree_order.h"
#include "ext/ext.pb.h"
#include "images/fs.pb.h"
#include "images/mm.pb.h"
#include "images/pipe-data.pb.h"
#include "migrate/session/guardian/privileges.h"

namespace migrate {
namespace {

using Kind = Privilege::Kind;

/// The tasks that have a file open.
struct Holders {
  pid_t first = 0;
  uint64_t held = 0;
};

bool wakes_the_machine(uint32_t clock) { return clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM; }

/// Those that are kept over the execution of a set-id program, which then would not lose its capabilities when it
/// should. That they be kept once (bit 4) anybody may ask for.
uint32_t kept_securebits(const img::core_entry& core) {
  constexpr uint32_t kKeepCapabilities = 1 << 4;
  return core.thread_core().creds().secbits() & ~kKeepCapabilities;
}

class Reader {
 public:
  explicit Reader(const ImageSet& images) : images_(images) {}

  std::vector<Privilege> run() {
    if (auto reader = images_.read("migrate-ext.img", magic::kMigrateExt))
      for (ext::ThreadExt e; reader->next(e); e.Clear()) ioprio_[static_cast<pid_t>(e.tid())] = e.ioprio();
    for (const TaskNode& task : read_tree(images_))
      if (!task.zombie) look_at(task);
    entries_ = read_file_entries(images_);
    look_at_waiting();
    for (const auto& [id, holders] : files_) look_at_file(id, holders);
    for (const auto& [id, task] : roots_) look_at_root(id, task);
    look_at_pipes("pipes-data.img", magic::kPipesData);
    look_at_pipes("fifo-data.img", magic::kFifoData);
    return std::move(found_);
  }

 private:
  void look_at(const TaskNode& task) {
    const auto id = static_cast<uint64_t>(task.pid);
    img::core_entry leader;
    uint64_t held = 0;
    for (const pid_t tid : task.threads) {
      img::core_entry core;
      images_.need(image_name("core", static_cast<uint64_t>(tid)), magic::kCore, core);
      if (tid == task.pid) {
        leader = core;
        if (leader.tc().rlimits().rlimits_size() < static_cast<int>(RLIM_NLIMITS))
          throw Corrupt(image_name("core", id), "resource limits are missing");
      }
      held |= look_at_thread(task.pid, tid, leader.tc().rlimits(), core);
    }
    const Privilege of{.kind = Kind::hard_limit, .task = task.pid, .held = held};
    for (uint32_t i = 0; i < RLIM_NLIMITS; ++i)
      add(of, Kind::hard_limit, leader.tc().rlimits().rlimits(static_cast<int>(i)).max(), i);
    if (leader.tc().oom_score_adj() < 0)
      add(of, Kind::oom_score, static_cast<uint64_t>(-static_cast<int64_t>(leader.tc().oom_score_adj())));
    for (const img::posix_timer_entry& timer : leader.tc().timers().posix())
      if (wakes_the_machine(timer.clock_id())) add(of, Kind::alarm_clock, timer.clock_id());
    look_at_memory(of, leader);
    look_at_files(of, leader);
  }

  /// Returns the capabilities that it holds.
  uint64_t look_at_thread(pid_t task, pid_t tid, const img::task_rlimits_entry& limits, const img::core_entry& core) {
    const img::thread_core_entry& t = core.thread_core();
    Privilege of{.kind = Kind::realtime, .task = task, .held = capability_bits(t.creds().cap_prm())};
    constexpr uint32_t kOther = 0, kFifo = 1, kRoundRobin = 2, kBatch = 3, kIdle = 5;
    const uint32_t policy = t.sched_policy();
    if (policy == kFifo || policy == kRoundRobin) {
      of.limit = limits.rlimits(RLIMIT_RTPRIO).max();
      add(of, Kind::realtime, t.sched_prio());
    } else if (policy != kOther && policy != kBatch && policy != kIdle) {
      add(of, Kind::deadline, policy);
    }
    if (t.sched_nice() < 0) {
      of.limit = limits.rlimits(RLIMIT_NICE).max();
      add(of, Kind::nice, static_cast<uint64_t>(20 - static_cast<int64_t>(t.sched_nice())));
    }
    constexpr uint32_t kClassShift = 13, kRealtimeClass = 1;
    const auto ioprio = ioprio_.find(tid);
    if (ioprio != ioprio_.end() && ioprio->second >> kClassShift == kRealtimeClass)
      add(of, Kind::io_realtime, ioprio->second);
    if (const uint32_t bits = kept_securebits(core); bits != 0) add(of, Kind::securebits, bits);
    return of.held;
  }

  void look_at_memory(Privilege of, const img::core_entry& leader) {
    img::mm_entry mm;
    images_.need(image_name("mm", static_cast<uint64_t>(of.task)), magic::kMm, mm);
    uint64_t locked = 0;
    for (const img::vma_entry& v : mm.vmas())
      if ((v.flags() & MAP_LOCKED) != 0 && v.end() > v.start()) locked += std::min(v.end() - v.start(), kUserSpace);
    of.limit = leader.tc().rlimits().rlimits(RLIMIT_MEMLOCK).max();
    if (locked != 0) add(of, Kind::locked_memory, locked);
  }

  void look_at_files(const Privilege& of, const img::core_entry& leader) {
    img::fs_entry fs;
    images_.need(image_name("fs", static_cast<uint64_t>(of.task)), magic::kFs, fs);
    if (fs.root_id() != 0) roots_.emplace_back(fs.root_id(), of);
    img::task_kobj_ids_entry ids = leader.ids();
    images_.get(image_name("ids", static_cast<uint64_t>(of.task)), magic::kIds, ids);
    for (const img::fdinfo_entry& e : read_table(images_, ids.files_id())) {
      Holders& holders = files_[e.id()];
      if (holders.first == 0) holders.first = of.task;
      holders.held |= of.held;
    }
  }

  /// What waits in the queues of sockets whoever has those may take.
  void look_at_waiting() {
    std::vector<uint32_t> known;
    for (const auto& [id, holders] : files_) known.push_back(id);
    hand_on_to_waiting(images_, std::move(known), [this](uint32_t socket, uint32_t id) {
      const auto [it, fresh] = files_.try_emplace(id, files_.at(socket));
      const uint64_t before = std::exchange(it->second.held, it->second.held | files_.at(socket).held);
      return fresh || before != it->second.held;
    });
  }

  void look_at_root(uint32_t id, const Privilege& of) {
    const auto it = entries_.find(id);
    if (it != entries_.end() && it->second.reg().name() != "/") add(of, Kind::root_folder, 0);
  }

  void look_at_file(uint32_t id, const Holders& holders) {
    const auto it = entries_.find(id);
    if (it == entries_.end()) return;
    const img::file_entry& e = it->second;
    const Privilege of{.kind = Kind::mark, .task = holders.first, .held = holders.held};
    switch (e.type()) {
      case img::fd_types::INETSK:
        look_at_socket(of, e.isk().opts(), e.isk().type() == SOCK_STREAM);
        return look_at_port(of, e.isk());
      case img::fd_types::UNIXSK:
        return look_at_socket(of, e.usk().opts(), false);
      case img::fd_types::TIMERFD:
        if (wakes_the_machine(e.tfd().clockid())) add(of, Kind::alarm_clock, e.tfd().clockid());
        return;
      case img::fd_types::EVENTPOLL:
        for (const img::eventpoll_tfd_entry& t : e.epfd().tfd())
          if ((t.events() & EPOLLWAKEUP) != 0) return add(of, Kind::wake_lock, 0);
        return;
      case img::fd_types::PIPE:
        pipes_.try_emplace({false, e.pipe().pipe_id()}, of);
        return;
      case img::fd_types::FIFO:
        pipes_.try_emplace({true, e.fifo().pipe_id()}, of);
        return;
      default:
        return;
    }
  }

  void look_at_port(const Privilege& of, const img::inet_sk_entry& e) {
    if (is_raw(e)) return add(of, Kind::raw_socket, e.proto());
    if (e.src_port() != 0 && !is_ping(e)) add(of, Kind::port, e.src_port());
  }

  void look_at_socket(const Privilege& of, const img::sk_opts_entry& o, bool tcp) {
    // Who did not set it (SO_BUF_LOCK) has what TCP made of it.
    const auto grown = [&](uint32_t lock) { return tcp && (o.so_buf_lock() & lock) == 0 ? 1u : 0u; };
    add(of, Kind::send_buffer, o.so_sndbuf(), grown(1));
    add(of, Kind::receive_buffer, o.so_rcvbuf(), grown(2));
    if (o.so_mark() != 0) add(of, Kind::mark, o.so_mark());
    if (o.so_priority() != 0) add(of, Kind::priority, o.so_priority());
  }

  void look_at_pipes(const char* name, uint32_t type) {
    auto reader = images_.read(name, type);
    if (!reader) return;
    const bool fifo = type == magic::kFifoData;
    for (img::pipe_data_entry e; reader->next(e); e.Clear()) {
      reader->raw(e.bytes());
      const auto it = pipes_.find({fifo, e.pipe_id()});
      if (it != pipes_.end()) add(it->second, Kind::pipe_size, e.size());
    }
  }

  void add(Privilege p, Kind kind, uint64_t value, uint32_t detail = 0) {
    p.kind = kind;
    p.value = value;
    p.detail = detail;
    found_.push_back(p);
  }

  const ImageSet& images_;
  std::map<pid_t, uint32_t> ioprio_;
  std::map<uint32_t, img::file_entry> entries_;
  std::map<uint32_t, Holders> files_;
  std::map<std::pair<bool, uint32_t>, Privilege> pipes_;
  std::vector<std::pair<uint32_t, Privilege>> roots_;
  std::vector<Privilege> found_;
};

}  // namespace

std::vector<Privilege> privileges_of(const ImageSet& images) { return Reader(images).run(); }

std::vector<Privilege> securebits_of(const ImageSet& images) {
  std::vector<Privilege> found;
  for (const TaskNode& task : read_tree(images)) {
    if (task.zombie) continue;
    for (const pid_t tid : task.threads) {
      img::core_entry core;
      images.need(image_name("core", static_cast<uint64_t>(tid)), magic::kCore, core);
      if (const uint32_t bits = kept_securebits(core); bits != 0)
        found.push_back({.kind = Kind::securebits,
                         .task = task.pid,
                         .value = bits,
                         .held = capability_bits(core.thread_core().creds().cap_prm())});
    }
  }
  return found;
}

}  // namespace migrate
