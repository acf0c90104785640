#include "migrate/session/destination/destination_checks.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "core/base/fd.h"
#include "core/base/limit_names.h"
#include "core/files/file_credentials.h"
#include "core/files/file_owners.h"
#include "core/freeze/memory_room.h"
#include "core/freeze/named_cgroup.h"
#include "core/restore/restorable.h"
#include "migrate/session/destination/destination_files.h"
#include "migrate/session/destination/file_checks.h"
#include "migrate/session/guardian/privileges.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

/// A source takes no more than 1000, of 4096 bytes each (check_bounds).
constexpr size_t kMaxReasons = 50;
constexpr size_t kMaxReason = 4096;

const char* what_helps(int reason) {
  switch (reason) {
    case EADDRINUSE:
      return "end what uses it there";
    case EADDRNOTAVAIL:
      return "give the destination that address, or have the program listen on all that there are";
    default:
      return "see that the receiver may use it";
  }
}

/// Tries to bind as the program will; a port of another program says EADDRINUSE.
std::string check_port(const wire::Check::Port& port) {
  const int family = static_cast<int>(port.family());
  const int type = static_cast<int>(port.type());
  if ((family != AF_INET && family != AF_INET6) || (type != SOCK_STREAM && type != SOCK_DGRAM)) return {};
  const bool mptcp = port.protocol() == IPPROTO_MPTCP;
  const Fd socket(::socket(family, type | SOCK_CLOEXEC, mptcp ? IPPROTO_MPTCP : 0));
  if (!socket && mptcp)
    return "the program has MPTCP sockets, and the destination has none; set net.mptcp.enabled there (Linux 5.6), or "
           "have the program use TCP (in Go: GODEBUG=multipathtcp=0)";
  if (!socket) return "the destination has no sockets of family " + std::to_string(family);
  const int one = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (family == AF_INET6) ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  sockaddr_storage storage{};
  socklen_t length = 0;
  if (family == AF_INET) {
    if (port.address().size() != 4) return "a port's address does not fit its family";
    auto* in = reinterpret_cast<sockaddr_in*>(&storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(static_cast<uint16_t>(port.port()));
    std::memcpy(&in->sin_addr, port.address().data(), 4);
    length = sizeof *in;
  } else {
    if (port.address().size() != 16) return "a port's address does not fit its family";
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(static_cast<uint16_t>(port.port()));
    std::memcpy(&in6->sin6_addr, port.address().data(), 16);
    length = sizeof *in6;
  }
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&storage), length) == 0) {
    if (type == SOCK_DGRAM || ::listen(socket.get(), 1) == 0) return {};
  }
  const int reason = errno;
  const bool everywhere = std::ranges::all_of(port.address(), [](char byte) { return byte == 0; });
  char address[INET6_ADDRSTRLEN] = "";
  ::inet_ntop(family, port.address().data(), address, sizeof address);
  return std::string(type == SOCK_DGRAM ? "UDP"
                     : mptcp            ? "MPTCP"
                                        : "TCP") +
         " port " + std::to_string(port.port()) + " cannot be used at the destination" +
         (everywhere ? "" : std::string(" on ") + address) + ": " + std::strerror(reason) + "; " + what_helps(reason);
}

Privilege from_wire(const wire::Check::Privilege& p) {
  return {.kind = static_cast<Privilege::Kind>(p.kind()),
          .task = p.task(),
          .detail = p.detail(),
          .value = p.value(),
          .limit = p.limit(),
          .held = p.held()};
}

void check_policy(const wire::Check& check, const IdentityPolicy& policy, const HostBounds& bounds,
                  std::vector<std::string>& reasons) {
  for (const uint32_t uid : check.uids()) {
    if (reasons.size() >= kMaxReasons) break;
    if (!policy.takes_uid(uid))
      reasons.push_back("a task runs as uid " + std::to_string(uid) +
                        ", which the receiver does not allow (--allow-uid)");
  }
  for (const uint32_t gid : check.gids()) {
    if (reasons.size() >= kMaxReasons) break;
    if (!policy.takes_gid(gid))
      reasons.push_back("a task is in group " + std::to_string(gid) +
                        ", which the receiver does not allow (--allow-gid)");
  }
  if ((check.capabilities() & policy.deny_capabilities) != 0) {
    reasons.push_back("a task has capabilities that the receiver denies (--deny-caps)");
  }
  if (!policy.allow_uids.empty())
    for (const auto& s : check.strangers()) {
      if (reasons.size() >= kMaxReasons) return;
      reasons.push_back("task " + std::to_string(s.task()) + " has fd " + std::to_string(s.fd()) + ", a Unix socket" +
                        tells_of_a_stranger(s.uid(), s.gid()) + "; " + kStrangerRemedy);
    }
  if (policy.empty()) return;
  for (const auto& p : check.privileges()) {
    if (reasons.size() >= kMaxReasons) return;
    if (auto reason = why_not(from_wire(p), policy, bounds)) reasons.push_back(std::move(*reason));
  }
}

/// What is there, and whether those who hold it may have it.
void check_files(const wire::Check& check, const ReceiveOptions& options, const IdentityPolicy& policy,
                 CheckAnswer& answer) {
  std::vector<std::string>& reasons = answer.reasons;
  const Fd root = open_path(options.root.empty() ? "/" : options.root, O_PATH | O_DIRECTORY);
  std::set<std::string> told;
  {
    FileChecks files(check, policy, root.get());
    // Who may not come as whom it says learns nothing more.
    if (files.bounded() && !reasons.empty()) return;
    for (const auto& file : check.files()) {
      if (reasons.size() >= kMaxReasons) break;
      std::string why = files.why_not(file);
      if (why.empty()) continue;
      reasons.push_back(std::move(why));
      told.insert(file.path());
    }
    answer.shared = files.shared();
  }
  check_rights(check,
               {.root = root.get(),
                .by_root = options.allow_uids.empty(),
                .own_proc = !options.root.empty(),
                .told = std::move(told),
                .policy = policy,
                .most = kMaxReasons},
               reasons);
}

/// Nobody can give what it lacks. (Each task has some privilege, with what it holds: its limits.)
void check_capabilities(const wire::Check& check, std::vector<std::string>& reasons) {
  const uint64_t own = own_credentials().capabilities;
  for (const auto& p : check.privileges()) {
    if ((p.held() & ~own) == 0) continue;
    reasons.push_back("task " + std::to_string(p.task()) + " has capability number " +
                      std::to_string(std::countr_zero(p.held() & ~own)) +
                      ", which the receiver lacks; run `migrate receive` with that capability");
    return;
  }
}

/// As check_restorable() will.
void check_extremes(const wire::Check& check, std::vector<std::string>& reasons) {
  // The range of the kernel's (OOM_SCORE_ADJ_MIN, MAX).
  const int64_t score = std::clamp<int64_t>(check.lowest_oom_score().value(), -1000, 1000);
  if (check.has_lowest_oom_score() && !may_give_oom_score(static_cast<int>(score)))
    reasons.push_back("task " + std::to_string(check.lowest_oom_score().task()) + " has oom_score_adj " +
                      std::to_string(score) +
                      ", lower than the receiver may give it; run `migrate receive` with CAP_SYS_RESOURCE, or with so "
                      "low a score of its own");
  rlimit signals{};
  if (!check.has_queued_signals() || ::getrlimit(RLIMIT_SIGPENDING, &signals) != 0) return;
  const int64_t queued = check.queued_signals().value();
  if (queued < 0 || static_cast<uint64_t>(queued) <= signals.rlim_max) return;
  reasons.push_back("task " + std::to_string(check.queued_signals().task()) + " has " + std::to_string(queued) +
                    " queued signals and timers, and the receiver's own limit is " + std::to_string(signals.rlim_max) +
                    "; raise that (ulimit -Hi)");
}

void check_layouts(const wire::Check& check, std::vector<std::string>& reasons) {
  const std::vector<AddressRange>& own = own_kernel_mappings();
  for (const auto& told : check.kernel_mappings()) {
    std::vector<AddressRange> wanted;
    for (int i = 0; i + 1 < told.ends_size(); i += 2) wanted.push_back({told.ends(i), told.ends(i + 1)});
    if (reasons.size() >= kMaxReasons || kernel_mappings_fit(wanted, own)) continue;
    reasons.push_back("the vdso of task " + std::to_string(told.task()) +
                      " is laid out differently from that of the receiver's kernel; move it to a host with the kernel "
                      "it was started on");
  }
}

/// What the restore will want of this process, and would refuse only after the rounds.
void check_means(const wire::Check& check, const HostBounds& bounds, std::vector<std::string>& reasons) {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && check.highest_descriptor() >= files.rlim_max) {
    reasons.push_back("the program has descriptor " + std::to_string(check.highest_descriptor()) +
                      ", and the receiver's own limit of open files is " + std::to_string(files.rlim_max) +
                      "; raise that (ulimit -Hn)");
  }
  check_capabilities(check, reasons);
  check_extremes(check, reasons);
  if (::prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) == 1) return;
  for (const auto& p : check.privileges()) {
    if (static_cast<Privilege::Kind>(p.kind()) != Privilege::Kind::hard_limit) continue;
    if (p.detail() >= bounds.hard_limits.size() || p.value() <= bounds.hard_limits[p.detail()]) continue;
    reasons.push_back("task " + std::to_string(p.task()) + " has a hard limit (" + limit_name(p.detail()) +
                      ") above the receiver's, which lacks CAP_SYS_RESOURCE; raise the receiver's own");
    return;
  }
}

void check_task_limit(const wire::Check& check, uint64_t most, std::vector<std::string>& reasons) {
  const auto tasks = static_cast<uint64_t>(check.pids_size()), threads = check.threads();
  if (tasks <= most && threads <= most - tasks) return;
  const auto counted = [](uint64_t n, const char* what) {
    return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
  };
  reasons.push_back("the program has " + counted(tasks, "task") +
                    (threads == 0 ? "" : " with " + counted(threads, "more thread")) + ", and the receiver takes " +
                    std::to_string(most) + " (--max-tasks); let it take more, if that is what it should have");
}

}  // namespace

IdentityPolicy identity_policy(const ReceiveOptions& options) {
  IdentityPolicy policy{options.allow_uids, options.allow_gids, options.deny_capabilities};
  if (!policy.takes_uid(0) && !policy.allow_gids) policy.allow_gids = groups_of_users(policy.allow_uids);
  return policy;
}

namespace {

MemoryRoom room_for_programs(const ReceiveOptions& options) {
  MemoryRoom ours = memory_room_at(::getpid());
  if (!options.cgroup) return ours;
  const NamedCgroup named = find_named_cgroup(*options.cgroup, options.allow_uids);
  const MemoryRoom room = memory_room(named.folders);
  // In hierarchies that have no such cgroup programs are where we are.
  const bool in_ours =
      std::ranges::any_of(named.without, [&](const std::string& point) { return ours.where.starts_with(point + "/"); });
  return in_ours && ours.bytes < room.bytes ? ours : room;
}

/// Later questions, which the tree may stand for, tell of no memory: what there is room for takes some looks at files.
void check_room(uint64_t memory, const MemoryRoom& room, std::vector<std::string>& reasons) {
  if (memory <= room.bytes) return;
  reasons.push_back("the program has " + human_bytes(memory) + " in memory, and " +
                    (room.where.empty() ? "the destination" : "cgroup " + room.where + " at the destination") +
                    " has room for " + human_bytes(room.bytes));
}

}  // namespace

CheckAnswer what_is_in_the_way(const wire::Check& check, const ReceiveOptions& options) {
  CheckAnswer answer;
  std::vector<std::string>& reasons = answer.reasons;
  const IdentityPolicy policy = identity_policy(options);  // asks the user database
  const HostBounds bounds = check.privileges().empty() ? HostBounds{} : HostBounds::here();
  check_policy(check, policy, bounds, reasons);
  check_means(check, bounds, reasons);
  const wire::Hello here = host_facts();
  if (check.memory() != 0) check_room(check.memory(), room_for_programs(options), reasons);
  if (options.max_memory != 0 && check.memory() > options.max_memory) {
    reasons.push_back("the program has " + human_bytes(check.memory()) + " in memory, and the receiver takes " +
                      human_bytes(options.max_memory) + " (--max-memory)");
  }
  check_task_limit(check, options.max_tasks, reasons);
  check_layouts(check, reasons);
  for (const uint32_t pid : check.pids()) {
    if (reasons.size() >= kMaxReasons) break;
    if (pid >= here.pid_max()) {
      reasons.push_back("pid " + std::to_string(pid) + " is beyond the destination's kernel.pid_max; raise that");
    }
  }
  check_files(check, options, policy, answer);
  for (const auto& port : check.ports()) {
    if (reasons.size() >= kMaxReasons) break;
    if (std::string why = check_port(port); !why.empty()) reasons.push_back(std::move(why));
  }
  for (const std::string& name : check.interfaces()) {
    if (reasons.size() >= kMaxReasons) break;
    if (name.size() < IF_NAMESIZE && ::if_nametoindex(name.c_str()) != 0) continue;
    reasons.push_back("the destination has no network interface " + name.substr(0, IF_NAMESIZE) +
                      ", to which a socket of the program is bound, or by which it sends or hears multicast; " +
                      "give the destination one of that name, or have the program use another");
  }
  for (std::string& reason : reasons) reason.resize(std::min(reason.size(), kMaxReason));
  return answer;
}

}  // namespace migrate
