#include "core/files/option_table.h"

#include <arpa/inet.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <iterator>
#include <optional>
#include <sstream>

#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "core/files/interfaces.h"
#include "core/files/paths.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

using Value = SocketOption::Value;
using Needs = SocketOption::Needs;
using When = SocketOption::When;

constexpr uint32_t kMostBytes = 64;
constexpr int kLite = IPPROTO_UDPLITE, kRaw = IPPROTO_RAW;

// Numbers where headers in use lack the name. What was set with the newer time stamps (SO_*_NEW) is told by these only,
// and takes back what the older ones set: they come after them.
constexpr auto kOptions = std::to_array<SocketOption>({
    {SOL_SOCKET, 1, "SO_DEBUG", Value::plain, Needs::net_admin},
    {SOL_SOCKET, 37, "SO_TIMESTAMPING", Value::plain, Needs::nothing, When::fresh, 8},
    {SOL_SOCKET, 65, "SO_TIMESTAMPING_NEW", Value::plain, Needs::nothing, When::fresh, 8},
    {SOL_SOCKET, 29, "SO_TIMESTAMP"},
    {SOL_SOCKET, 35, "SO_TIMESTAMPNS"},
    {SOL_SOCKET, 63, "SO_TIMESTAMP_NEW"},
    {SOL_SOCKET, 64, "SO_TIMESTAMPNS_NEW"},
    {SOL_SOCKET, 40, "SO_RXQ_OVFL"},
    {SOL_SOCKET, 41, "SO_WIFI_STATUS"},
    {SOL_SOCKET, 43, "SO_NOFCS"},
    {SOL_SOCKET, 45, "SO_SELECT_ERR_QUEUE"},
    {SOL_SOCKET, 46, "SO_BUSY_POLL", Value::plain, Needs::net_admin},
    {SOL_SOCKET, 69, "SO_PREFER_BUSY_POLL", Value::plain, Needs::net_admin},
    {SOL_SOCKET, 47, "SO_MAX_PACING_RATE", Value::plain, Needs::nothing, When::fresh, 8},
    {SOL_SOCKET, 49, "SO_INCOMING_CPU"},
    {SOL_SOCKET, 60, "SO_ZEROCOPY"},
    {SOL_SOCKET, 61, "SO_TXTIME", Value::plain, Needs::net_admin, When::fresh, 8},
    {SOL_SOCKET, 74, "SO_TXREHASH"},
    {SOL_SOCKET, 75, "SO_RCVMARK", Value::plain, Needs::either},
    {SOL_SOCKET, 76, "SO_PASSPIDFD"},
    {SOL_SOCKET, 82, "SO_RCVPRIORITY"},
    {SOL_SOCKET, 83, "SO_PASSRIGHTS"},
    {SOL_NETLINK, NETLINK_PKTINFO, "NETLINK_PKTINFO"},
    {SOL_NETLINK, NETLINK_BROADCAST_ERROR, "NETLINK_BROADCAST_ERROR"},
    {SOL_NETLINK, NETLINK_NO_ENOBUFS, "NETLINK_NO_ENOBUFS"},
    {SOL_NETLINK, NETLINK_CAP_ACK, "NETLINK_CAP_ACK"},
    {SOL_NETLINK, NETLINK_EXT_ACK, "NETLINK_EXT_ACK"},
    {SOL_NETLINK, NETLINK_GET_STRICT_CHK, "NETLINK_GET_STRICT_CHK"},
    {IPPROTO_IP, 4, "IP_OPTIONS", Value::plain, Needs::net_raw, When::fresh, 40},
    {IPPROTO_IP, 1, "IP_TOS"},
    {IPPROTO_IP, 2, "IP_TTL"},
    {IPPROTO_IP, 6, "IP_RECVOPTS"},
    {IPPROTO_IP, 7, "IP_RETOPTS"},
    {IPPROTO_IP, 8, "IP_PKTINFO"},
    {IPPROTO_IP, 10, "IP_MTU_DISCOVER"},
    {IPPROTO_IP, 11, "IP_RECVERR"},
    {IPPROTO_IP, 12, "IP_RECVTTL"},
    {IPPROTO_IP, 13, "IP_RECVTOS"},
    {IPPROTO_IP, 15, "IP_FREEBIND"},
    {IPPROTO_IP, 18, "IP_PASSSEC"},
    {IPPROTO_IP, 19, "IP_TRANSPARENT", Value::plain, Needs::either},
    {IPPROTO_IP, 20, "IP_RECVORIGDSTADDR"},
    {IPPROTO_IP, 21, "IP_MINTTL"},
    {IPPROTO_IP, 23, "IP_CHECKSUM"},
    {IPPROTO_IP, 24, "IP_BIND_ADDRESS_NO_PORT"},
    {IPPROTO_IP, 25, "IP_RECVFRAGSIZE"},
    {IPPROTO_IP, 26, "IP_RECVERR_RFC4884"},
    {IPPROTO_IP, 32, "IP_MULTICAST_IF"},
    {IPPROTO_IP, 33, "IP_MULTICAST_TTL"},
    {IPPROTO_IP, 34, "IP_MULTICAST_LOOP"},
    {IPPROTO_IP, 49, "IP_MULTICAST_ALL"},
    {IPPROTO_IP, 50, "IP_UNICAST_IF", Value::interface_in_net},
    {IPPROTO_IP, 51, "IP_LOCAL_PORT_RANGE"},
    {IPPROTO_IPV6, 2, "IPV6_2292PKTINFO"},
    {IPPROTO_IPV6, 3, "IPV6_2292HOPOPTS"},
    {IPPROTO_IPV6, 4, "IPV6_2292DSTOPTS"},
    {IPPROTO_IPV6, 5, "IPV6_2292RTHDR"},
    {IPPROTO_IPV6, 8, "IPV6_2292HOPLIMIT"},
    {IPPROTO_IPV6, 11, "IPV6_FLOWINFO"},
    {IPPROTO_IPV6, 16, "IPV6_UNICAST_HOPS"},
    {IPPROTO_IPV6, 17, "IPV6_MULTICAST_IF", Value::interface},
    {IPPROTO_IPV6, 18, "IPV6_MULTICAST_HOPS"},
    {IPPROTO_IPV6, 19, "IPV6_MULTICAST_LOOP"},
    {IPPROTO_IPV6, 23, "IPV6_MTU_DISCOVER"},
    {IPPROTO_IPV6, 25, "IPV6_RECVERR"},
    {IPPROTO_IPV6, 29, "IPV6_MULTICAST_ALL"},
    {IPPROTO_IPV6, 30, "IPV6_ROUTER_ALERT_ISOLATE"},
    {IPPROTO_IPV6, 31, "IPV6_RECVERR_RFC4884"},
    {IPPROTO_IPV6, 33, "IPV6_FLOWINFO_SEND"},
    {IPPROTO_IPV6, 49, "IPV6_RECVPKTINFO"},
    {IPPROTO_IPV6, 51, "IPV6_RECVHOPLIMIT"},
    {IPPROTO_IPV6, 53, "IPV6_RECVHOPOPTS"},
    {IPPROTO_IPV6, 54, "IPV6_HOPOPTS", Value::plain, Needs::net_raw, When::fresh, kMostBytes},
    {IPPROTO_IPV6, 55, "IPV6_RTHDRDSTOPTS", Value::plain, Needs::net_raw, When::fresh, kMostBytes},
    {IPPROTO_IPV6, 56, "IPV6_RECVRTHDR"},
    {IPPROTO_IPV6, 57, "IPV6_RTHDR", Value::plain, Needs::nothing, When::fresh, kMostBytes},
    {IPPROTO_IPV6, 58, "IPV6_RECVDSTOPTS"},
    {IPPROTO_IPV6, 59, "IPV6_DSTOPTS", Value::plain, Needs::net_raw, When::fresh, kMostBytes},
    {IPPROTO_IPV6, 60, "IPV6_RECVPATHMTU"},
    {IPPROTO_IPV6, 62, "IPV6_DONTFRAG"},
    {IPPROTO_IPV6, 66, "IPV6_RECVTCLASS"},
    {IPPROTO_IPV6, 67, "IPV6_TCLASS"},
    {IPPROTO_IPV6, 70, "IPV6_AUTOFLOWLABEL"},
    {IPPROTO_IPV6, 72, "IPV6_ADDR_PREFERENCES"},
    {IPPROTO_IPV6, 73, "IPV6_MINHOPCOUNT"},
    {IPPROTO_IPV6, 74, "IPV6_RECVORIGDSTADDR"},
    {IPPROTO_IPV6, 75, "IPV6_TRANSPARENT", Value::plain, Needs::either},
    {IPPROTO_IPV6, 76, "IPV6_UNICAST_IF", Value::interface_in_net},
    {IPPROTO_IPV6, 77, "IPV6_RECVFRAGSIZE"},
    {IPPROTO_IPV6, 78, "IPV6_FREEBIND"},
    {IPPROTO_TCP, 13, "TCP_CONGESTION", Value::text, Needs::net_admin, When::fresh, 16},
    {IPPROTO_TCP, 1, "TCP_NODELAY"},
    {IPPROTO_TCP, 2, "TCP_MAXSEG"},
    {IPPROTO_TCP, 3, "TCP_CORK"},
    {IPPROTO_TCP, 4, "TCP_KEEPIDLE"},
    {IPPROTO_TCP, 5, "TCP_KEEPINTVL"},
    {IPPROTO_TCP, 6, "TCP_KEEPCNT"},
    {IPPROTO_TCP, 7, "TCP_SYNCNT"},
    {IPPROTO_TCP, 8, "TCP_LINGER2"},
    {IPPROTO_TCP, 9, "TCP_DEFER_ACCEPT"},
    {IPPROTO_TCP, 10, "TCP_WINDOW_CLAMP"},
    {IPPROTO_TCP, 12, "TCP_QUICKACK"},
    {IPPROTO_TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS"},
    {IPPROTO_TCP, 18, "TCP_USER_TIMEOUT"},
    {IPPROTO_TCP, 25, "TCP_NOTSENT_LOWAT"},
    {IPPROTO_TCP, 27, "TCP_SAVE_SYN"},
    {IPPROTO_TCP, 30, "TCP_FASTOPEN_CONNECT"},
    {IPPROTO_TCP, 33, "TCP_FASTOPEN_KEY", Value::plain, Needs::nothing, When::fresh, 32},
    {IPPROTO_TCP, 34, "TCP_FASTOPEN_NO_COOKIE"},
    {IPPROTO_TCP, 36, "TCP_INQ"},
    {IPPROTO_TCP, 37, "TCP_TX_DELAY"},
    {IPPROTO_TCP, 44, "TCP_RTO_MAX_MS"},
    {IPPROTO_TCP, 45, "TCP_RTO_MIN_US"},
    {IPPROTO_TCP, 46, "TCP_DELACK_MAX_US"},
    // listen(2) sets it.
    {IPPROTO_TCP, 23, "TCP_FASTOPEN", Value::plain, Needs::nothing, When::bound},
    {IPPROTO_UDP, 1, "UDP_CORK"},
    {IPPROTO_UDP, 100, "UDP_ENCAP"},
    {IPPROTO_UDP, 101, "UDP_NO_CHECK6_TX"},
    {IPPROTO_UDP, 102, "UDP_NO_CHECK6_RX"},
    {IPPROTO_UDP, 103, "UDP_SEGMENT"},
    {IPPROTO_UDP, 104, "UDP_GRO"},
    {kRaw, 1, "ICMP_FILTER"},
    {IPPROTO_ICMPV6, 1, "ICMPV6_FILTER", Value::plain, Needs::nothing, When::fresh, 32},
    {IPPROTO_IP, 3, "IP_HDRINCL"},
    {IPPROTO_IP, 22, "IP_NODEFRAG"},
    {IPPROTO_IPV6, 7, "IPV6_CHECKSUM"},
    {IPPROTO_IPV6, 36, "IPV6_HDRINCL"},
    {kLite, 10, "UDPLITE_SEND_CSCOV"},
    {kLite, 11, "UDPLITE_RECV_CSCOV"},
    // IP_TOS sets it.
    {SOL_SOCKET, 12, "SO_PRIORITY", Value::plain, Needs::either},
    {SOL_SOCKET, 42, "SO_PEEK_OFF", Value::plain, Needs::nothing, When::bound},
    {SOL_SOCKET, 44, "SO_LOCK_FILTER", Value::plain, Needs::nothing, When::sealed},
});

bool holds_interface(const SocketOption& option) {
  return option.value == Value::interface || option.value == Value::interface_in_net;
}

/// nullopt: this kind of socket, or this kernel, does not have it.
std::optional<std::string> read_option(int fd, const SocketOption& option) {
  std::string value(std::max(option.size, kMostBytes), '\0');
  auto length = static_cast<socklen_t>(option.size);
  if (::getsockopt(fd, option.level, option.name, value.data(), &length) != 0) return std::nullopt;
  value.resize(length);
  if (option.value == Value::text) value.resize(::strnlen(value.data(), value.size()));
  return value;
}

bool is_zero(const std::string& value) {
  return std::ranges::all_of(value, [](char c) { return c == '\0'; });
}

int number_in(const std::string& value) {
  int number = 0;
  std::memcpy(&number, value.data(), std::min(value.size(), sizeof number));
  return number;
}

int interface_in(const SocketOption& option, const std::string& value) {
  const int number = number_in(value);
  return option.value == Value::interface_in_net ? static_cast<int>(ntohl(static_cast<uint32_t>(number))) : number;
}

const SocketOption* find_option(uint32_t level, uint32_t name) {
  const auto it = std::ranges::find_if(kOptions, [&](const SocketOption& o) {
    return static_cast<uint32_t>(o.level) == level && static_cast<uint32_t>(o.name) == name;
  });
  return it == kOptions.end() ? nullptr : &*it;
}

/// The value as it is here.
std::string wanted_value(int fd, const SocketOption& option, const ext::SocketOption& recorded,
                         const std::string& who) {
  if (!holds_interface(option) || recorded.interface().empty()) return recorded.value();
  int number = interface_number(fd, recorded.interface(), who);
  if (option.value == Value::interface_in_net) number = static_cast<int>(htonl(static_cast<uint32_t>(number)));
  return {reinterpret_cast<const char*>(&number), sizeof number};
}

void set_option(int fd, const SocketOption& option, const ext::SocketOption& recorded, const std::string& who) {
  const std::string value = wanted_value(fd, option, recorded, who);
  const std::optional<std::string> now = read_option(fd, option);
  // Nothing of what may be empty is there unless it was set.
  if (value.empty() || now == value || (!now && is_zero(value))) return;
  check(::setsockopt(fd, option.level, option.name, value.data(), static_cast<socklen_t>(value.size())),
        "set " + std::string(option.text) + " of", who);
}

bool may_set(const SocketOption& option, const FileCredentials& who) {
  const bool admin = who.has(CAP_NET_ADMIN), raw = who.has(CAP_NET_RAW);
  switch (option.needs) {
    case Needs::nothing:
      return true;
    case Needs::net_admin:
      return admin;
    case Needs::net_raw:
      return raw;
    case Needs::either:
      return admin || raw;
  }
  return false;
}

bool allowed_congestion(const std::string& algorithm) {
  std::istringstream allowed(read_file_at(AT_FDCWD, "/proc/sys/net/ipv4/tcp_allowed_congestion_control"));
  return std::find(std::istream_iterator<std::string>(allowed), {}, algorithm) != std::istream_iterator<std::string>();
}

/// What needs no right: all that is off, and the priorities up to 6 (socket(7)).
bool harmless(const SocketOption& option, const std::string& value) {
  if (option.level == SOL_SOCKET && option.name == SO_PRIORITY) return number_in(value) >= 0 && number_in(value) <= 6;
  // Its first part is a clock: any but this one wants the capability.
  if (option.level == SOL_SOCKET && option.name == SO_TXTIME && number_in(value) == CLOCK_MONOTONIC) return true;
  if (option.value == Value::text) return allowed_congestion(value);
  return is_zero(value);
}

bool possible_path(const std::string& path) {
  const std::string name = split_path(path).name;
  return path.starts_with('/') && path.find('\0') == std::string::npos && !name.empty() && name != "." && name != "..";
}

}  // namespace

std::span<const SocketOption> socket_options() { return kOptions; }

namespace {

/// An accepted TCP socket tells of the packet that made it (tcp_v4_syn_recv_sock()), and takes none of these.
bool of_datagrams(const SocketOption& option) {
  return option.level == IPPROTO_IP
             ? option.name == IP_MULTICAST_IF || option.name == IP_MULTICAST_TTL
             : option.level == IPPROTO_IPV6 && (option.name == IPV6_MULTICAST_IF || option.name == IPV6_MULTICAST_HOPS);
}

/// What a connection tells of itself in the place of what was set: its ends agree on it anew.
bool of_connection(const SocketOption& option) {
  return option.level == IPPROTO_TCP &&
         (option.name == TCP_MAXSEG || option.name == TCP_WINDOW_CLAMP || option.name == TCP_QUICKACK);
}

}  // namespace

std::set<std::string> interfaces_in_options(int fd, const std::string& who) {
  std::set<std::string> names;
  if (auto interface = bound_interface(fd, who)) names.insert(std::move(*interface));
  const bool stream = try_socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM;
  for (const SocketOption& option : kOptions) {
    if (!holds_interface(option) || (stream && of_datagrams(option))) continue;
    const std::optional<std::string> value = read_option(fd, option);
    if (value && !is_zero(*value)) names.insert(interface_name(fd, interface_in(option, *value), who));
  }
  return names;
}

void describe_options(int fd, const std::string& who, ext::SocketState& out, bool connection) {
  const bool stream = try_socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM;
  for (const SocketOption& option : kOptions) {
    if ((stream && of_datagrams(option)) || (connection && of_connection(option))) continue;
    const std::optional<std::string> value = read_option(fd, option);
    if (!value) continue;
    ext::SocketOption& e = *out.add_options();
    e.set_level(static_cast<uint32_t>(option.level));
    e.set_name(static_cast<uint32_t>(option.name));
    e.set_value(*value);
    if (!holds_interface(option) || is_zero(*value)) continue;
    e.set_interface(interface_name(fd, interface_in(option, *value), who));
  }
}

SocketStates::SocketStates(const ImageSet& images) {
  auto reader = images.read(kSocketsImage, kSocketsMagic);
  ext::SocketState e;
  while (reader && reader->next(e)) {
    for (const ext::SocketOption& o : e.options()) {
      const SocketOption* known = find_option(o.level(), o.name());
      if (known == nullptr)
        throw Corrupt(kSocketsImage, "option " + std::to_string(o.level()) + "/" + std::to_string(o.name()) +
                                         " of a socket is not known");
      if (o.value().size() > known->size) throw Corrupt(kSocketsImage, std::string(known->text) + " is too long");
    }
    if (e.has_file() && !possible_path(e.file()))
      throw Corrupt(kSocketsImage, "the path of a Unix socket is impossible");
    if (!states_.emplace(e.id_for(), e).second) throw Corrupt(kSocketsImage, "a socket stands twice");
  }
}

const ext::SocketState* SocketStates::find(uint32_t file_id) const {
  const auto it = states_.find(file_id);
  return it == states_.end() ? nullptr : &it->second;
}

void SocketStates::apply(uint32_t file_id, int fd, When when, const std::string& who) const {
  const ext::SocketState* state = find(file_id);
  if (state == nullptr) return;
  std::map<const SocketOption*, const ext::SocketOption*> recorded;
  for (const ext::SocketOption& o : state->options()) recorded[find_option(o.level(), o.name())] = &o;
  // By address: in the table's order.
  for (const auto& [option, value] : recorded)
    if (when == When::sealed ? option->when == when : option->when <= when) set_option(fd, *option, *value, who);
}

void SocketStates::check_rights(uint32_t file_id, const Holders& holders, const std::string& who) const {
  const ext::SocketState* state = find(file_id);
  if (state == nullptr) return;
  for (const ext::SocketOption& o : state->options()) {
    const SocketOption& option = *find_option(o.level(), o.name());
    if (harmless(option, o.value())) continue;
    if (std::ranges::any_of(holders, [&](const FileCredentials& h) { return may_set(option, h); })) continue;
    throw Refusal(who + " with " + option.text + ", which no task that has it may set",
                  "have the program set it back, or close the socket");
  }
}

}  // namespace migrate
