#include "migrate/session/source/inventory_privileges.h"

#include <netinet/in.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

#include "core/base/looked_at.h"
#include "core/base/proc_values.h"
#include "core/files/fdinfo.h"
#include "core/files/inet_address.h"
#include "core/files/multicast.h"
#include "core/files/socket_options.h"
#include "core/task/proc_text.h"
#include "migrate/session/guardian/privileges.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

namespace migrate {
namespace {

using Kind = Privilege::Kind;

wire::Check::Privilege privilege(Kind kind, uint64_t value, uint32_t detail = 0) {
  wire::Check::Privilege p;
  p.set_kind(static_cast<uint32_t>(kind));
  p.set_detail(detail);
  p.set_value(value);
  return p;
}

void add(wire::Check& check, int32_t task, uint64_t held, Kind kind, uint64_t value, uint64_t limit = 0,
         uint32_t detail = 0) {
  wire::Check::Privilege* p = check.add_privileges();
  *p = privilege(kind, value, detail);
  p->set_task(task);
  p->set_limit(limit);
  p->set_held(held);
}

bool wakes_the_machine(uint64_t clock) { return clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM; }

/// As the restore will find them in the images (guardian/privileges_images.cpp). Returns the socket's domain.
uint32_t add_socket_options(int fd, std::vector<wire::Check::Privilege>& found) {
  const auto ask = [&](int option) {
    return static_cast<uint32_t>(try_socket_option(fd, SOL_SOCKET, option).value_or(0));
  };
  const uint32_t domain = ask(SO_DOMAIN);
  const bool tcp = (domain == AF_INET || domain == AF_INET6) && ask(SO_TYPE) == SOCK_STREAM;
  const uint32_t locked = tcp ? ask(SO_BUF_LOCK) : 3;
  found.push_back(privilege(Kind::send_buffer, ask(SO_SNDBUF), (locked & 1) == 0 ? 1 : 0));
  found.push_back(privilege(Kind::receive_buffer, ask(SO_RCVBUF), (locked & 2) == 0 ? 1 : 0));
  const bool raw = (domain == AF_INET || domain == AF_INET6) && ask(SO_TYPE) == SOCK_RAW;
  if (raw) found.push_back(privilege(Kind::raw_socket, ask(SO_PROTOCOL)));
  if (const uint32_t mark = ask(SO_MARK); mark != 0) found.push_back(privilege(Kind::mark, mark));
  if (const uint32_t priority = ask(SO_PRIORITY); priority != 0) found.push_back(privilege(Kind::priority, priority));
  return domain;
}

/// The name in the file system under which a Unix socket will be bound again; empty if it has none.
std::string socket_name(int fd) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 || address.sun_family != AF_UNIX)
    return {};
  if (address.sun_path[0] != '/') return {};  // none, an abstract one, or relative to who knows what
  // A connection that was accepted has the name of the one that listened.
  const bool listens = try_socket_option(fd, SOL_SOCKET, SO_ACCEPTCONN).value_or(0) != 0;
  if (!listens && try_socket_option(fd, SOL_SOCKET, SO_TYPE).value_or(0) != SOCK_DGRAM) return {};
  return {address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path)};
}

wire::Check::Port port_of(int fd) {
  InetAddress address;
  if (!own_address(fd, address)) throw Error("read the address of", "an MPTCP socket", errno);
  wire::Check::Port port;
  port.set_family(address.raw.ss_family);
  port.set_type(SOCK_STREAM);
  port.set_protocol(IPPROTO_MPTCP);
  port.set_port(address.port());
  if (address.raw.ss_family == AF_INET) {
    port.set_address(&address.v4().sin_addr, sizeof(in_addr));
  } else {
    port.set_address(&address.v6().sin6_addr, sizeof(in6_addr));
  }
  return port;
}

/// Whether an interest list has an entry that keeps the machine awake.
bool keeps_awake(const std::string& fdinfo) {
  constexpr std::string_view kKey = " events:";
  for (size_t at = fdinfo.find(kKey); at != fdinfo.npos; at = fdinfo.find(kKey, at + 1))
    if ((std::strtoul(fdinfo.c_str() + at + kKey.size(), nullptr, 16) & EPOLLWAKEUP) != 0) return true;
  return false;
}

void add_scheduling(pid_t task, pid_t tid, uint64_t held, const std::array<Rlimit, kRlimits>& limits,
                    wire::Check& check) {
  const int told = ::sched_getscheduler(tid);
  const int policy = told < 0 ? SCHED_OTHER : told & ~SCHED_RESET_ON_FORK;
  if (policy == SCHED_FIFO || policy == SCHED_RR) {
    sched_param param{};
    ::sched_getparam(tid, &param);
    add(check, task, held, Kind::realtime, static_cast<uint64_t>(param.sched_priority), limits[RLIMIT_RTPRIO].max);
  } else if (policy > 0 && policy != SCHED_BATCH && policy != SCHED_IDLE) {
    add(check, task, held, Kind::deadline, static_cast<uint64_t>(policy));
  }
  errno = 0;
  const int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(tid));
  if (errno == 0 && nice < 0)
    add(check, task, held, Kind::nice, static_cast<uint64_t>(20 - nice), limits[RLIMIT_NICE].max);
  constexpr int kWhoProcess = 1, kClassShift = 13, kRealtimeClass = 1;
  const long ioprio = ::syscall(SYS_ioprio_get, kWhoProcess, tid);
  if (ioprio > 0 && ioprio >> kClassShift == kRealtimeClass)
    add(check, task, held, Kind::io_realtime, static_cast<uint64_t>(ioprio));
}

constexpr int kMostStrangers = 50;  ///< as many as a destination tells; a message has its bounds

wire::Check::Extreme extreme(int32_t task, int64_t value) {
  wire::Check::Extreme e;
  e.set_task(task);
  e.set_value(value);
  return e;
}

/// How often a signal is queued, and what other threads have, is not seen from outside. A restore gives each task room
/// up to its own hard limit.
void add_queued_signals(pid_t task, const StatusFields& status, size_t timers, uint64_t limit, wire::Check& check) {
  size_t queued = timers;
  for (const char* key : {"SigPnd", "ShdPnd"}) {
    const auto set = status.find(key);
    if (set == status.end()) continue;
    queued += static_cast<size_t>(std::popcount(parse_number(set->second, "/proc/PID/status: pending signals", 16)));
  }
  const auto value = static_cast<int64_t>(queued);
  if (queued > limit && value > check.queued_signals().value()) *check.mutable_queued_signals() = extreme(task, value);
}

}  // namespace

uint64_t held_capabilities(const StatusFields& status) {
  const auto it = status.find("CapPrm");
  return it == status.end() ? 0 : parse_number(it->second, "/proc/PID/status: CapPrm", 16);
}

void add_privileges(const ProcDir& task, const StatusFields& status, std::span<const pid_t> threads, uint64_t held,
                    wire::Check& check) {
  const pid_t pid = task.pid();
  const std::array<Rlimit, kRlimits> limits = parse_limits(task.read("limits"));
  for (const pid_t tid : threads) add_scheduling(pid, tid, held, limits, check);
  // Which of them are raised the destination knows.
  for (uint32_t i = 0; i < limits.size(); ++i) add(check, pid, held, Kind::hard_limit, limits[i].max, 0, i);
  const int oom = parse_number<int32_t>(task.read("oom_score_adj"), "/proc/PID/oom_score_adj");
  if (oom < 0) add(check, pid, held, Kind::oom_score, static_cast<uint64_t>(-oom));
  if (!check.has_lowest_oom_score() || oom < check.lowest_oom_score().value())
    *check.mutable_lowest_oom_score() = extreme(pid, oom);
  const auto timers = parse_timers(task.read("timers"));
  add_queued_signals(pid, status, timers.size(), limits[RLIMIT_SIGPENDING].max, check);
  for (const PosixTimer& timer : timers)
    if (wakes_the_machine(static_cast<uint64_t>(timer.clock)))
      add(check, pid, held, Kind::alarm_clock, static_cast<uint64_t>(timer.clock), 0,
          static_cast<uint32_t>(timer.clock));
  if (task.link("root") != "/") add(check, pid, held, Kind::root_folder, 0);
  if (const auto locked = status.find("VmLck"); locked != status.end()) {
    const uint64_t bytes = parse_first_number(locked->second, "/proc/PID/status: VmLck") * 1024;
    if (bytes > limits[RLIMIT_MEMLOCK].max)
      add(check, pid, held, Kind::locked_memory, bytes, limits[RLIMIT_MEMLOCK].max);
  }
}

void DescriptorPrivileges::add(const ProcDir& task, int fd, const std::string& link, mode_t mode, uint64_t held,
                               const HolderNumbers& holders) {
  const bool socket = link.starts_with("socket:["), pipe = link.starts_with("pipe:[") || S_ISFIFO(mode);
  const auto hold = [&](SocketHolder& holder) {
    if (holder.task == 0) holder.task = task.pid();
    holder.held |= held;
  };
  if (socket) hold(sockets_[std::strtoull(link.c_str() + 8, nullptr, 10)]);
  if (!look_) return;
  std::string key;
  if (socket || pipe) key = link;
  // These have no name of their own, and change: they are read for the first answer only.
  if (asked_ == nullptr && (link == "anon_inode:[timerfd]" || link == "anon_inode:[eventpoll]"))
    key = link + " " + std::to_string(task.pid()) + " " + std::to_string(fd);
  if (key.empty() || (asked_ != nullptr && asked_->contains(key))) return;
  const auto [it, fresh] = facts_.try_emplace(std::move(key));
  hold(it->second.holder);
  it->second.holders.insert(holders.begin(), holders.end());
  if (fresh) look_into(task, fd, link, it->second);
}

const Fd& DescriptorPrivileges::pidfd_of(pid_t task) {
  if (of_ == task) return pidfd_;
  auto opened = open_pidfd(task);
  if (!opened) throw Error("open a pidfd of task", std::to_string(task), ESRCH);
  pidfd_ = std::move(*opened);
  of_ = task;
  return pidfd_;
}

void DescriptorPrivileges::look_into(const ProcDir& task, int fd, const std::string& link, Facts& facts) {
  if (link.starts_with("anon_inode:")) {
    const FdInfo info = parse_fdinfo(task.read("fdinfo/" + std::to_string(fd)));
    const bool timer = link == "anon_inode:[timerfd]";
    if (timer && wakes_the_machine(fdinfo_number(info, "clockid:", 10)))
      facts.found.push_back(privilege(Kind::alarm_clock, fdinfo_number(info, "clockid:", 10)));
    if (!timer && keeps_awake(info.text)) facts.found.push_back(privilege(Kind::wake_lock, 0));
    return;
  }
  const Fd ours = get_remote_fd(pidfd_of(task.pid()).get(), fd);
  if (!link.starts_with("socket:")) {
    const int size = ::fcntl(ours.get(), F_GETPIPE_SZ);
    if (size > 0) facts.found.push_back(privilege(Kind::pipe_size, static_cast<uint64_t>(size)));
    return;
  }
  const uint32_t domain = add_socket_options(ours.get(), facts.found);
  if (domain == AF_INET || domain == AF_INET6) facts.interfaces = interfaces_of(ours.get(), task, link);
  if (is_mptcp(ours.get())) facts.port = port_of(ours.get());
  if (domain != AF_UNIX) return;
  facts.peer = peer_credentials(ours.get(), link);
  facts.fd = fd;
  std::string name = socket_name(ours.get());
  if (name.empty()) return;
  const std::string root = task.link("root");
  facts.socket_name = root == "/" ? name : root + name;
}

std::set<std::string> DescriptorPrivileges::write(wire::Check& check, FileNeeds& files, const UserIds& ids) const {
  std::set<std::string> looked, interfaces;
  for (const auto& [key, facts] : facts_) {
    looked.insert(key);
    interfaces.insert(facts.interfaces.begin(), facts.interfaces.end());
    for (const wire::Check::Privilege& found : facts.found) {
      wire::Check::Privilege* out = check.add_privileges();
      *out = found;
      out->set_task(facts.holder.task);
      out->set_held(facts.holder.held);
    }
    if (facts.port) {
      *check.add_ports() = *facts.port;
      if (facts.port->port() != 0) add_port_privilege(facts.holder, facts.port->port(), check);
    }
    if (facts.peer && !ids.include(*facts.peer) && check.strangers_size() < kMostStrangers) {
      wire::Check::Stranger* out = check.add_strangers();
      out->set_task(facts.holder.task);
      out->set_fd(facts.fd);
      out->set_uid(facts.peer->uid);
      out->set_gid(facts.peer->gid);
    }
    if (facts.socket_name.empty()) continue;
    const Fd file = find_by_name(facts.socket_name, O_NOFOLLOW);
    struct stat st {};
    if (file && ::fstat(file.get(), &st) == 0 && S_ISSOCK(st.st_mode))
      files.add_socket(facts.socket_name, st, facts.holders);
  }
  for (const std::string& name : interfaces) check.add_interfaces(name);
  return looked;
}

void add_port_privilege(const SocketHolder& holder, uint32_t port, wire::Check& check) {
  add(check, holder.task, holder.held, Kind::port, port);
}

void add_securebits(pid_t task, uint32_t bits, wire::Check& check) {
  constexpr uint32_t kKeepCapabilities = 1 << 4;  // that they be kept once anybody may ask for
  if ((bits & ~kKeepCapabilities) == 0) return;
  try {
    add(check, task, held_capabilities(ProcDir(task).status()), Kind::securebits, bits & ~kKeepCapabilities);
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
  }
}

void add_securebits(const ImageSet& images, wire::Check& check) {
  for (const Privilege& p : securebits_of(images)) add(check, p.task, p.held, p.kind, p.value);
}

void leave_out_privileges(const wire::Check& known, wire::Check& news) {
  using Key = std::tuple<uint32_t, uint32_t, uint64_t, uint64_t, uint64_t>;
  std::set<Key> told;
  const auto fresh = [&](const wire::Check::Privilege& p) {
    return told.emplace(p.kind(), p.detail(), p.value(), p.limit(), p.held()).second;
  };
  for (const auto& p : known.privileges()) fresh(p);
  auto* now = news.mutable_privileges();
  now->erase(std::remove_if(now->begin(), now->end(), [&](const auto& p) { return !fresh(p); }), now->end());
  if (known.has_lowest_oom_score() && known.lowest_oom_score().value() <= news.lowest_oom_score().value())
    news.clear_lowest_oom_score();
  if (known.queued_signals().value() >= news.queued_signals().value()) news.clear_queued_signals();
  const std::set<uint32_t> gids(known.gids().begin(), known.gids().end());
  auto* groups = news.mutable_gids();
  groups->erase(std::remove_if(groups->begin(), groups->end(), [&](uint32_t gid) { return gids.contains(gid); }),
                groups->end());
}

}  // namespace migrate
