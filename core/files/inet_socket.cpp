#include "core/files/inet_socket.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <climits>
#include <ctime>

#include "core/files/inet_address.h"
#include "core/files/inet_diag.h"
#include "core/files/interfaces.h"
#include "core/files/multicast.h"
#include "core/files/option_table.h"
#include "core/files/raw_socket.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

constexpr uint32_t kEstablished = TCP_ESTABLISHED, kClose = TCP_CLOSE, kListen = TCP_LISTEN;  // also used for UDP

/// Bound to it, after bind(2) has taken the port, a socket that takes no filter hears nobody: there is none of that
/// number (sock_bindtoindex() in net/core/sock.c does not ask).
constexpr int kNoInterface = INT_MAX;

/// They differ in checksums only.
bool is_udp(uint32_t proto) { return proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE; }

bool is_mptcp(const img::inet_sk_entry& e) { return e.type() == SOCK_STREAM && e.proto() == IPPROTO_MPTCP; }
/// Also Multipath TCP.
bool is_tcp(const img::inet_sk_entry& e) {
  return is_mptcp(e) || (e.type() == SOCK_STREAM && e.proto() == IPPROTO_TCP);
}

/// A TCP connection that is no more: reset, or at its end.
bool gone(const img::inet_sk_entry& e) {
  return is_tcp(e) && e.state() == kClose && e.shutdown() == img::sk_shutdown::BOTH;
}

tcp_info tcp_state(const OpenFile& file) {
  tcp_info info{};
  socklen_t length = sizeof info;
  check(::getsockopt(file.ours.get(), IPPROTO_TCP, TCP_INFO, &info, &length),
        "read the TCP state of socket:", file.who());
  return info;
}

void describe_ip_options(const OpenFile& file, bool v6, img::ip_opts_entry& out) {
  const int fd = file.ours.get();
  const auto flag = [&](int level, int name) { return try_socket_option(fd, level, name).value_or(0) != 0; };
  if (v6) {
    if (flag(IPPROTO_IPV6, IPV6_FREEBIND)) out.set_freebind(true);
    if (flag(IPPROTO_IPV6, IPV6_RECVPKTINFO)) out.set_pktinfo(true);
    return;
  }
  if (flag(IPPROTO_IP, IP_FREEBIND)) out.set_freebind(true);
  if (flag(IPPROTO_IP, IP_PKTINFO)) out.set_pktinfo(true);
  out.set_tos(static_cast<uint32_t>(try_socket_option(fd, IPPROTO_IP, IP_TOS).value_or(0)));
  if (const auto ttl = try_socket_option(fd, IPPROTO_IP, IP_TTL)) out.set_ttl(static_cast<uint32_t>(*ttl));
}

void describe_tcp_options(const OpenFile& file, img::inet_sk_entry& e) {
  const auto get = [&](int name) {
    return static_cast<uint32_t>(socket_option(file.ours.get(), IPPROTO_TCP, name, file.who()));
  };
  // Which has them all since Linux 6.8.
  if (is_mptcp(e) && !try_socket_option(file.ours.get(), IPPROTO_TCP, TCP_KEEPIDLE)) return;
  img::tcp_opts_entry& t = *e.mutable_tcp_opts();
  t.set_cork(get(TCP_CORK) != 0);
  t.set_nodelay(get(TCP_NODELAY) != 0);
  t.set_keepcnt(get(TCP_KEEPCNT));
  t.set_keepidle(get(TCP_KEEPIDLE));
  t.set_keepintvl(get(TCP_KEEPINTVL));
  e.mutable_opts()->set_tcp_keepcnt(t.keepcnt());
  e.mutable_opts()->set_tcp_keepidle(t.keepidle());
  e.mutable_opts()->set_tcp_keepintvl(t.keepintvl());
}

/// What UDP_CORK or MSG_MORE holds back can be read by nobody; only that there is something (udp(7)), or that it is on
/// its way through the device, which is over in a moment. Nothing may be probed for meanwhile (describe_multicast): it
/// would be sent.
void check_corked(const OpenFile& file) {
  constexpr int kLooks = 20;
  constexpr timespec kBetween{0, 1'000'000};
  for (int looks = 0; looks < kLooks; ++looks) {
    int unsent = 0;
    if (::ioctl(file.ours.get(), SIOCOUTQ, &unsent) != 0 || unsent == 0) return;
    ::nanosleep(&kBetween, nullptr);
  }
  throw Refusal(file.who() + ", a UDP socket with a datagram not sent yet (UDP_CORK, MSG_MORE)",
                "have the program send it first");
}

/// Connected once: all that is left of the connection is its end (tcp_poll()).
bool has_ended(int fd, short& events) {
  pollfd p{fd, POLLIN | POLLRDHUP, 0};
  check(::poll(&p, 1, 0), "poll", "a TCP socket");
  events = p.revents;
  return (p.revents & POLLRDHUP) != 0;
}

/// Else an end of what comes is our own (shutdown(2), SHUT_RD).
bool has_peers_end(uint32_t state) {
  return state != TCP_ESTABLISHED && state != TCP_FIN_WAIT1 && state != TCP_FIN_WAIT2;
}

void check_ended(const OpenFile& file) {
  short events;
  int unread = 0;
  if (!has_ended(file.ours.get(), events) || ::ioctl(file.ours.get(), FIONREAD, &unread) != 0 || unread <= 0) return;
  throw Refusal(
      file.who() + ", a TCP connection that has ended, with " + std::to_string(unread) + " bytes not read yet",
      "let them be read, or use --tcp-close to drop them");
}

/// Neither connected nor ever was.
bool is_untouched(const OpenFile& file, uint32_t state) {
  short events;
  return state == kClose && !has_ended(file.ours.get(), events);
}

}  // namespace

void check_inet_socket(const OpenFile& file, const FileDumpOptions& options) {
  const int fd = file.ours.get();
  const int type = socket_option(fd, SOL_SOCKET, SO_TYPE, file.who());
  const int proto = socket_option(fd, SOL_SOCKET, SO_PROTOCOL, file.who());
  if (type == SOCK_DGRAM && is_udp(static_cast<uint32_t>(proto))) {
    return check_corked(file);
  }
  const bool ping = type == SOCK_DGRAM && (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6);
  if (type == SOCK_RAW) return check_raw_socket(file, static_cast<uint32_t>(proto));
  if (ping) return;
  if (type != SOCK_STREAM || (proto != IPPROTO_TCP && proto != IPPROTO_MPTCP))
    throw Refusal(file.who() + ", a socket of protocol " + std::to_string(proto), "close it first");
  const tcp_info info = tcp_state(file);
  if (proto == IPPROTO_MPTCP && info.tcpi_state != kListen && !is_untouched(file, info.tcpi_state))
    throw Refusal(file.who() + ", an MPTCP connection", "have the program close it first");
  if (options.tcp_close) return;
  if (info.tcpi_state == kClose) return check_ended(file);
  if (info.tcpi_state == kListen) {
    // For a listening socket tcpi_unacked is the number of connections nobody has accepted yet (tcp_get_info).
    if (info.tcpi_unacked == 0) return;
    throw Refusal(file.who() + ", a listening TCP socket with " + std::to_string(info.tcpi_unacked) +
                      " connections not accepted yet",
                  "try again, or use --tcp-close to drop them");
  }
  InetAddress peer;
  const std::string to = peer_address(fd, peer) ? " to " + peer.text() : "";
  throw Refusal(
      file.who() + (info.tcpi_state == kEstablished ? ", an established TCP connection" : ", a TCP connection") + to,
      "close it first, or use --tcp-close to drop it");
}

namespace {

std::optional<InetAddress> find_peer(const OpenFile& file, const img::inet_sk_entry& e) {
  if (is_raw(e) || is_ping(e)) return raw_peer(file, e);
  InetAddress peer;
  return peer_address(file.ours.get(), peer) ? std::optional(peer) : std::nullopt;
}

/// Of the directions that shutdown(2) has closed those that poll(2) tells: not that of sending alone.
int shutdown_seen(int fd) {
  pollfd p{fd, POLLRDHUP, 0};
  check(::poll(&p, 1, 0), "poll", "a socket");
  if ((p.revents & POLLHUP) != 0) return img::sk_shutdown::BOTH;
  return (p.revents & POLLRDHUP) != 0 ? img::sk_shutdown::READ : 0;
}

}  // namespace

int InetDumper::udp_shutdown(const OpenFile& file) {
  const uint64_t netns = stat_cached(file.proc->fd(), "ns/net", 0, "a network namespace").stx_ino;
  auto known = shutdowns_.find(netns);
  if (known == shutdowns_.end()) known = shutdowns_.emplace(netns, list_udp_shutdowns(file.proc)).first;
  const auto it = known->second.find(static_cast<uint32_t>(file.st.stx_ino));
  return it == known->second.end() ? 0 : it->second;
}

void InetDumper::describe_state(const OpenFile& file, img::inet_sk_entry& e, ext::SocketState& state,
                                std::optional<uint32_t> connection) {
  const int fd = file.ours.get();
  e.set_state(kClose);
  e.set_backlog(0);
  if (!is_tcp(e)) {
    if (find_peer(file, e)) e.set_state(kEstablished);
    if (const int how = is_udp(e.proto()) ? udp_shutdown(file) : shutdown_seen(fd); how != 0)
      e.set_shutdown(static_cast<img::sk_shutdown>(how));
    int queued = 0;
    if (::ioctl(fd, FIONREAD, &queued) == 0 && queued > 0)
      context_.log.warn("{}: packets in its queue are dropped", file.who());
    return;
  }
  if (connection) {
    e.set_state(*connection);
    short events = 0;
    if (!has_peers_end(*connection) && has_ended(fd, events)) e.set_shutdown(img::sk_shutdown::READ);
    return;
  }
  const tcp_info info = tcp_state(file);
  if (info.tcpi_state == kListen) {
    e.set_state(kListen);
    e.set_backlog(info.tcpi_sacked);  // the backlog, likewise
    if (info.tcpi_unacked > 0)
      context_.log.warn("{}: {} connections not accepted yet are dropped", file.who(), info.tcpi_unacked);
    return;
  }
  short events = POLLERR;
  const bool dropped = info.tcpi_state != kClose;
  if (dropped) context_.log.warn("{}: its TCP connection is dropped (--tcp-close)", file.who());
  if (!dropped && !has_ended(fd, events)) return;
  e.set_shutdown(img::sk_shutdown::BOTH);
  state.set_reset((events & POLLERR) != 0);
}

uint32_t tcp_state_of(const OpenFile& file) { return tcp_state(file).tcpi_state; }

void InetDumper::dump(const OpenFile& file, std::optional<uint32_t> connection) {
  if (!connection) check_inet_socket(file, context_.options);
  const int fd = file.ours.get();
  const int proto = socket_option(fd, SOL_SOCKET, SO_PROTOCOL, file.who());
  img::file_entry entry = entry_of(img::fd_types::INETSK, file.id);
  img::inet_sk_entry& e = *entry.mutable_isk();
  ext::SocketState state;
  state.set_id_for(file.id);
  describe_common(file, e);
  InetAddress source;
  if (!own_address(fd, source)) throw Error("read the address of socket:", file.who(), errno);
  const bool v6 = source.raw.ss_family == AF_INET6;
  e.set_ino(static_cast<uint32_t>(file.st.stx_ino));
  e.set_family(source.raw.ss_family);
  e.set_type(static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, SO_TYPE, file.who())));
  e.set_proto(static_cast<uint32_t>(proto));
  describe_state(file, e, state, connection);
  InetAddress peer;
  peer.raw.ss_family = source.raw.ss_family;
  if (connection || e.state() == kEstablished) {
    const std::optional<InetAddress> found = find_peer(file, e);
    if (!found) throw Error("read the peer of", file.who(), ENOTCONN);
    peer = *found;
  }
  if (gone(e)) {
    // Nothing to bind: a dropped connection must not take the port of its listener.
    source.raw = {};
    source.raw.ss_family = peer.raw.ss_family;
  }
  e.set_src_port(source.port());
  e.set_dst_port(connection || e.state() == kEstablished ? peer.port() : 0);
  put_words(source, e.mutable_src_addr());
  put_words(peer, e.mutable_dst_addr());
  describe_socket_options(fd, file.who(), *e.mutable_opts());
  if (is_tcp(e)) describe_tcp_options(file, e);
  if (v6) {
    e.set_v6only(try_socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY).value_or(0) != 0);
    char name[IF_NAMESIZE];
    if (source.v6().sin6_scope_id != 0 && ::if_indextoname(source.v6().sin6_scope_id, name)) e.set_ifname(name);
  }
  describe_ip_options(file, v6, *e.mutable_ip_opts());
  if (!gone(e)) describe_options(fd, file.who(), state, connection.has_value());
  if (!is_tcp(e)) describe_multicast(fd, *file.proc, file.who(), state);
  context_.images.write(kSocketsImage, kSocketsMagic).entry(state);
  context_.emit(entry);
  record_owner(context_, file);
}

std::string who_is(const img::inet_sk_entry& e) {
  const std::string kind = is_raw(e)    ? "raw socket of protocol " + std::to_string(e.proto())
                           : is_ping(e) ? "ICMP socket"
                                        : std::string(is_mptcp(e) ? "MPTCP"
                                                      : is_tcp(e) ? "TCP"
                                                                  : "UDP") +
                                              " socket";
  return kind + " " + get_address(e, true).text();
}

namespace {

void apply_ip_options(int fd, const img::inet_sk_entry& e, const std::string& who) {
  const bool v6 = e.family() == AF_INET6;
  const img::ip_opts_entry& o = e.ip_opts();
  // A raw one cannot have it set, and tells it all the same.
  if (v6 && e.has_v6only() && try_socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) != static_cast<int>(e.v6only()))
    set_socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, e.v6only(), who);
  if (o.freebind()) set_socket_option(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_FREEBIND : IP_FREEBIND, 1, who);
  if (o.pktinfo()) set_socket_option(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_RECVPKTINFO : IP_PKTINFO, 1, who);
  if (!v6 && o.tos() != 0) set_socket_option(fd, IPPROTO_IP, IP_TOS, static_cast<int>(o.tos()), who);
  if (!v6 && o.has_ttl() && try_socket_option(fd, IPPROTO_IP, IP_TTL) != static_cast<int>(o.ttl()))
    set_socket_option(fd, IPPROTO_IP, IP_TTL, static_cast<int>(o.ttl()), who);
}

void apply_tcp_options(int fd, const img::inet_sk_entry& e, const std::string& who) {
  const auto set = [&](int name, uint32_t value) {
    if (try_socket_option(fd, IPPROTO_TCP, name) != static_cast<int>(value))
      set_socket_option(fd, IPPROTO_TCP, name, static_cast<int>(value), who);
  };
  const img::tcp_opts_entry& t = e.tcp_opts();
  if (t.has_cork()) set(TCP_CORK, t.cork());
  if (t.has_nodelay()) set(TCP_NODELAY, t.nodelay());
  if (t.has_keepcnt()) set(TCP_KEEPCNT, t.keepcnt());
  if (t.has_keepidle()) set(TCP_KEEPIDLE, t.keepidle());
  if (t.has_keepintvl()) set(TCP_KEEPINTVL, t.keepintvl());
}

bool has_own_address(const img::inet_sk_entry& e) {
  return std::ranges::any_of(e.src_addr(), [](uint32_t word) { return word != 0; });
}

/// Bound to an address, of which the port is chosen when it connects (ip(7), IP_BIND_ADDRESS_NO_PORT).
bool without_port(int fd, const img::inet_sk_entry& e) {
  return has_own_address(e) && try_socket_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT).value_or(0) != 0;
}

void check_entry(const img::inet_sk_entry& e) {
  constexpr uint32_t kLastProtocol = 255;
  const bool udp = e.type() == SOCK_DGRAM && is_udp(e.proto());
  const bool raw = is_raw(e) && e.proto() <= kLastProtocol;
  if ((e.family() != AF_INET && e.family() != AF_INET6) || (!is_tcp(e) && !udp && !raw && !is_ping(e)))
    throw Refusal(
        "the images hold a socket of family " + std::to_string(e.family()) + ", protocol " + std::to_string(e.proto()),
        "only TCP, UDP, raw and ICMP ones can be restored");
}

}  // namespace

Fd InetRestorer::make(const img::inet_sk_entry& e, const std::string& who) {
  const bool connection = is_tcp(e) && e.state() != kListen && e.state() != kClose;
  if (connection && !tcp_close_)
    throw Refusal("the images hold a TCP connection of " + who, "use --tcp-close to restore it closed");
  if (connection || gone(e)) {
    const ext::SocketState* state = states_.find(e.id());
    if (Fd fd = resets_.make(static_cast<int>(e.family()), connection || state == nullptr || state->reset())) return fd;
    log_.warn("{}: without a loopback interface its connection cannot be seen to have ended (ENOTCONN)", who);
  }
  return Fd(check(
      ::socket(static_cast<int>(e.family()), static_cast<int>(e.type()) | SOCK_CLOEXEC, static_cast<int>(e.proto())),
      "make", who));
}

void InetRestorer::bind(int fd, const img::inet_sk_entry& e, const std::string& who) {
  const bool tcp = is_tcp(e);
  // Connections of the dumped tree may still linger in TIME_WAIT.
  if (tcp) set_socket_option(fd, SOL_SOCKET, SO_REUSEADDR, 1, who);
  InetAddress source = get_address(e, true);
  check(::bind(fd, source.get(), source.length), "bind", who);
  if (hold_ && is_mptcp(e)) set_socket_option(fd, SOL_SOCKET, SO_BINDTOIFINDEX, kNoInterface, who);
  if (tcp && e.state() == kListen)
    check(::listen(fd, static_cast<int>(std::min<uint32_t>(e.backlog(), INT32_MAX))), "listen on", who);
  if (tcp) set_socket_option(fd, SOL_SOCKET, SO_REUSEADDR, e.opts().reuseaddr(), who);
}

namespace {

void apply_options(int fd, const img::inet_sk_entry& e, const std::string& who) {
  apply_socket_options(fd, e.opts(), who);
  apply_ip_options(fd, e, who);
  if (is_tcp(e)) apply_tcp_options(fd, e, who);
}

}  // namespace

Fd InetRestorer::make_end(const img::inet_sk_entry& e, const FileOwner& owner, const FileOwner& ours) {
  check_entry(e);
  const std::string who = who_is(e);
  Fd fd(check(::socket(static_cast<int>(e.family()), SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP), "make", who));
  give_file(fd.get(), owner, ours, who);
  apply_options(fd.get(), e, who);
  states_.apply(e.id(), fd.get(), SocketOption::When::fresh, who);
  return fd;
}

void InetRestorer::connected(const img::inet_sk_entry& e, int fd) {
  const std::string who = who_is(e);
  if (e.opts().so_filter_size() != 0) attach_own_filter(fd, e.opts(), who);
  states_.apply(e.id(), fd, SocketOption::When::bound, who);
  if (!hold_) states_.apply(e.id(), fd, SocketOption::When::sealed, who);
}

Fd InetRestorer::open(const img::inet_sk_entry& e, const FileOwner& owner, const FileOwner& ours) {
  check_entry(e);
  const std::string who = who_is(e);
  const bool tcp = is_tcp(e);
  Fd fd = make(e, who);
  give_file(fd.get(), owner, ours, who);
  apply_options(fd.get(), e, who);
  if (tcp && (gone(e) || (e.state() != kListen && e.state() != kClose))) return fd;
  states_.apply(e.id(), fd.get(), SocketOption::When::fresh, who);
  // Also where it is to be deaf for now: a filter that the kernel does not take shows here, not behind the gate.
  if (!hold_ || e.opts().so_filter_size() != 0) attach_own_filter(fd.get(), e.opts(), who);
  if (hold_ && !is_mptcp(e) && (e.src_port() != 0 || is_raw(e))) attach_deaf_filter(fd.get(), who);
  if (is_raw(e)) drop_received(fd.get());  // which it hears of from its first moment on
  if (is_raw(e) ? has_own_address(e) : e.src_port() != 0 || without_port(fd.get(), e)) bind(fd.get(), e, who);
  const ext::SocketState* state = states_.find(e.id());
  if (!tcp && state != nullptr) apply_multicast(fd.get(), *state, who);
  if (!tcp && e.state() == kEstablished) {
    InetAddress peer = get_address(e, false);
    check(::connect(fd.get(), peer.get(), peer.length), "connect to " + peer.text() + " the", who);
  }
  // It says that it is not connected, and shuts down all the same (inet_shutdown()).
  const int how = static_cast<int>(e.shutdown());
  if (!tcp && how != 0 && ::shutdown(fd.get(), how - 1) != 0 && errno != ENOTCONN) throw Error("shut down", who, errno);
  states_.apply(e.id(), fd.get(), SocketOption::When::bound, who);
  if (!hold_) states_.apply(e.id(), fd.get(), SocketOption::When::sealed, who);
  return fd;
}

namespace {

void hear_again(const img::inet_sk_entry& e, int fd) {
  const std::string& device = e.opts().so_bound_dev();
  const int number = device.empty() ? 0 : interface_number(fd, device, who_is(e));
  set_socket_option(fd, SOL_SOCKET, SO_BINDTOIFINDEX, number, who_is(e));
}

}  // namespace

void InetRestorer::remember(const img::inet_sk_entry& e, int fd) {
  if (hold_) held_.push_back({&e, fd});
}

void InetRestorer::release(std::vector<std::string>& failures) {
  for (const Held& held : held_) try {
      if (is_mptcp(*held.entry))
        hear_again(*held.entry, held.fd);
      else
        attach_own_filter(held.fd, held.entry->opts(), who_is(*held.entry));
      states_.apply(held.entry->id(), held.fd, SocketOption::When::sealed, who_is(*held.entry));
    } catch (const Error& e) {
      log_.error("{}", e.what());
      failures.emplace_back(e.what());
    }
  held_.clear();
}

}  // namespace migrate
