#include "migrate/session/guardian/privileges.h"

#include <linux/capability.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "core/base/fd.h"

namespace migrate {
namespace {

constexpr uint64_t bit(int capability) { return uint64_t{1} << capability; }

struct Rule {
  Privilege::Kind kind;
  uint64_t any_of;         ///< capabilities, one of which the kernel asks for
  const char* capability;  ///< their names
};

using Kind = Privilege::Kind;
constexpr std::array kRules{
    Rule{Kind::realtime, bit(CAP_SYS_NICE), "CAP_SYS_NICE"},
    Rule{Kind::nice, bit(CAP_SYS_NICE), "CAP_SYS_NICE"},
    Rule{Kind::io_realtime, bit(CAP_SYS_NICE) | bit(CAP_SYS_ADMIN), "CAP_SYS_NICE"},
    Rule{Kind::hard_limit, bit(CAP_SYS_RESOURCE), "CAP_SYS_RESOURCE"},
    Rule{Kind::oom_score, bit(CAP_SYS_RESOURCE), "CAP_SYS_RESOURCE"},
    Rule{Kind::locked_memory, bit(CAP_IPC_LOCK), "CAP_IPC_LOCK"},
    Rule{Kind::send_buffer, bit(CAP_NET_ADMIN), "CAP_NET_ADMIN"},
    Rule{Kind::receive_buffer, bit(CAP_NET_ADMIN), "CAP_NET_ADMIN"},
    Rule{Kind::mark, bit(CAP_NET_ADMIN) | bit(CAP_NET_RAW), "CAP_NET_ADMIN or CAP_NET_RAW"},
    Rule{Kind::priority, bit(CAP_NET_ADMIN) | bit(CAP_NET_RAW), "CAP_NET_ADMIN or CAP_NET_RAW"},
    Rule{Kind::port, bit(CAP_NET_BIND_SERVICE), "CAP_NET_BIND_SERVICE"},
    Rule{Kind::pipe_size, bit(CAP_SYS_RESOURCE), "CAP_SYS_RESOURCE"},
    Rule{Kind::alarm_clock, bit(CAP_WAKE_ALARM), "CAP_WAKE_ALARM"},
    Rule{Kind::wake_lock, bit(CAP_BLOCK_SUSPEND), "CAP_BLOCK_SUSPEND"},
    Rule{Kind::root_folder, bit(CAP_SYS_CHROOT), "CAP_SYS_CHROOT"},
    Rule{Kind::securebits, bit(CAP_SETPCAP), "CAP_SETPCAP"},
    Rule{Kind::deadline, bit(CAP_SYS_NICE), "CAP_SYS_NICE"},
    Rule{Kind::raw_socket, bit(CAP_NET_RAW), "CAP_NET_RAW"},
};

const char* limit_name(uint32_t resource) {
  constexpr std::array kNames{"CPU",     "FSIZE", "DATA",  "STACK",      "CORE",     "RSS",  "NPROC",  "NOFILE",
                              "MEMLOCK", "AS",    "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"};
  return resource < kNames.size() ? kNames[resource] : "?";
}

/// What it has: "real-time priority 10".
std::string describe(const Privilege& p) {
  const std::string value = std::to_string(p.value);
  switch (p.kind) {
    case Kind::realtime:
      return "real-time priority " + value;
    case Kind::nice:
      return "nice value " + std::to_string(20 - static_cast<int64_t>(p.value));
    case Kind::io_realtime:
      return "real-time I/O priority";
    case Kind::hard_limit:
      return std::string("a hard limit RLIMIT_") + limit_name(p.detail) + " of " +
             (p.value == RLIM_INFINITY ? "no end" : value) + ", above this host's,";
    case Kind::oom_score:
      return "oom_score_adj -" + value;
    case Kind::locked_memory:
      return value + " bytes of locked memory, more than its limit,";
    case Kind::send_buffer:
    case Kind::receive_buffer:
      return std::string("a socket with a ") + (p.kind == Kind::send_buffer ? "send" : "receive") + " buffer of " +
             value + " bytes, more than this host gives,";
    case Kind::mark:
      return "a socket with SO_MARK " + value;
    case Kind::priority:
      return "a socket with SO_PRIORITY " + value;
    case Kind::port:
      return "a socket on port " + value;
    case Kind::pipe_size:
      return "a pipe of " + value + " bytes, more than this host gives,";
    case Kind::alarm_clock:
      return "a timer that wakes the machine";
    case Kind::wake_lock:
      return "an epoll entry with EPOLLWAKEUP";
    case Kind::root_folder:
      return "a root folder of its own";
    case Kind::securebits:
      return "securebits " + value;
    case Kind::deadline:
      return "scheduling policy " + value;
    case Kind::raw_socket:
      return "a raw socket of protocol " + value;
  }
  return "something unknown";
}

/// Whether anybody may have that here.
bool given_to_anybody(const Privilege& p, const HostBounds& bounds) {
  switch (p.kind) {
    case Kind::realtime:
    case Kind::nice:
    case Kind::locked_memory:
      return p.value <= p.limit;
    case Kind::hard_limit:
      return p.detail < bounds.hard_limits.size() && p.value <= bounds.hard_limits[p.detail];
    case Kind::oom_score:
      return p.value == 0;
    case Kind::send_buffer:
      return p.value <= (p.detail != 0 ? bounds.grown_send_buffer : bounds.send_buffer);
    case Kind::receive_buffer:
      return p.value <= (p.detail != 0 ? bounds.grown_receive_buffer : bounds.receive_buffer);
    case Kind::priority:
      return p.value <= 6;
    case Kind::port:
      return p.value >= bounds.first_free_port;
    case Kind::pipe_size:
      return p.value <= bounds.pipe_size;
    default:
      return false;
  }
}

/// The numbers in a file of /proc/sys; `otherwise` if it is not there.
std::vector<uint64_t> setting(const std::string& name, std::vector<uint64_t> otherwise) {
  try {
    std::istringstream words(read_file_at(AT_FDCWD, "/proc/sys/" + name));
    std::vector<uint64_t> numbers;
    for (uint64_t n; words >> n;) numbers.push_back(n);
    if (numbers.size() >= otherwise.size()) return numbers;
  } catch (const Error&) {  // an older kernel, or another network namespace than the first
  }
  return otherwise;
}

}  // namespace

HostBounds HostBounds::here() {
  HostBounds b;
  for (uint32_t i = 0; i < b.hard_limits.size(); ++i) {
    rlimit own{};
    check(::getrlimit(static_cast<__rlimit_resource>(i), &own), "read", "our own limits");
    b.hard_limits[i] = own.rlim_max;
  }
  // The kernel doubles what is set.
  const auto largest = [](const char* max, const char* usual, const char* tcp, uint64_t& fixed, uint64_t& grown) {
    const std::vector<uint64_t> of_tcp = setting(tcp, {4096, 131072, 6 << 20});
    fixed = std::max({2 * setting(max, {212992})[0], setting(usual, {212992})[0], of_tcp[1]});
    grown = std::max(fixed, of_tcp[2]);
  };
  largest("net/core/wmem_max", "net/core/wmem_default", "net/ipv4/tcp_wmem", b.send_buffer, b.grown_send_buffer);
  largest("net/core/rmem_max", "net/core/rmem_default", "net/ipv4/tcp_rmem", b.receive_buffer, b.grown_receive_buffer);
  b.pipe_size = setting("fs/pipe-max-size", {1 << 20})[0];
  b.first_free_port = setting("net/ipv4/ip_unprivileged_port_start", {1024})[0];
  return b;
}

std::optional<std::string> why_not(const Privilege& p, const IdentityPolicy& policy, const HostBounds& bounds) {
  const auto rule = std::find_if(kRules.begin(), kRules.end(), [&](const Rule& r) { return r.kind == p.kind; });
  if (rule == kRules.end() || given_to_anybody(p, bounds)) return std::nullopt;
  if (!policy.bounds(rule->any_of) || (p.held & rule->any_of) != 0) return std::nullopt;
  return "task " + std::to_string(p.task) + " has " + describe(p) + " and not " + rule->capability +
         ", which the receiver wants for it";
}

uint64_t capability_bits(const google::protobuf::RepeatedField<uint32_t>& words) {
  uint64_t all = 0;
  for (int i = 0; i < std::min(words.size(), 2); ++i) all |= uint64_t{words.Get(i)} << (32 * i);
  return all;
}

}  // namespace migrate
