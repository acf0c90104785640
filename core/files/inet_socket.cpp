#include "core/files/inet_socket.h"

#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>

#include "core/files/inet_address.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

constexpr uint32_t kEstablished = TCP_ESTABLISHED, kClose = TCP_CLOSE, kListen = TCP_LISTEN;  // also used for UDP

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
  out.set_ttl(static_cast<uint32_t>(try_socket_option(fd, IPPROTO_IP, IP_TTL).value_or(64)));
}

void describe_tcp_options(const OpenFile& file, img::inet_sk_entry& e) {
  const auto get = [&](int name) {
    return static_cast<uint32_t>(socket_option(file.ours.get(), IPPROTO_TCP, name, file.who()));
  };
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

}  // namespace

void check_inet_socket(const OpenFile& file, const FileDumpOptions& options) {
  const int fd = file.ours.get();
  const int type = socket_option(fd, SOL_SOCKET, SO_TYPE, file.who());
  const int proto = socket_option(fd, SOL_SOCKET, SO_PROTOCOL, file.who());
  if (type == SOCK_DGRAM && proto == IPPROTO_UDP) return;
  if (type != SOCK_STREAM || proto != IPPROTO_TCP) {
    const std::string what = proto == 262       ? "an MPTCP socket"
                             : type == SOCK_RAW ? "a raw socket"
                                                : "a socket of protocol " + std::to_string(proto);
    throw Refusal(file.who() + ", " + what, "close it first");
  }
  const tcp_info info = tcp_state(file);
  if (info.tcpi_state == kClose || options.tcp_close) return;
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

uint32_t tcp_state_of(const OpenFile& file) { return tcp_state(file).tcpi_state; }

void dump_inet_socket(const OpenFile& file, DumpContext& context, std::optional<uint32_t> connection) {
  if (!connection) check_inet_socket(file, context.options);
  const int fd = file.ours.get();
  const int proto = socket_option(fd, SOL_SOCKET, SO_PROTOCOL, file.who());
  img::file_entry entry = entry_of(img::fd_types::INETSK, file.id);
  img::inet_sk_entry& e = *entry.mutable_isk();
  describe_common(file, e);
  InetAddress source, peer;
  if (!own_address(fd, source)) throw Error("read the address of socket:", file.who(), errno);
  const bool v6 = source.raw.ss_family == AF_INET6;
  peer.raw.ss_family = source.raw.ss_family;
  e.set_ino(static_cast<uint32_t>(file.st.stx_ino));
  e.set_family(source.raw.ss_family);
  e.set_type(proto == IPPROTO_TCP ? SOCK_STREAM : SOCK_DGRAM);
  e.set_proto(static_cast<uint32_t>(proto));
  e.set_state(kClose);
  e.set_backlog(0);
  if (connection) {
    e.set_state(*connection);
    if (!peer_address(fd, peer)) throw Error("read the peer of socket:", file.who(), errno);
  } else if (proto == IPPROTO_TCP) {
    const tcp_info info = tcp_state(file);
    if (info.tcpi_state == kListen) {
      e.set_state(kListen);
      e.set_backlog(info.tcpi_sacked);  // the backlog, likewise
      if (info.tcpi_unacked > 0)
        context.log.warn("{}: {} connections not accepted yet are dropped", file.who(), info.tcpi_unacked);
    } else if (info.tcpi_state != kClose) {
      context.log.warn("{}: its TCP connection is dropped (--tcp-close)", file.who());
      // Nothing to bind: a dropped connection must not take the port of its listener.
      source.raw = {};
      source.raw.ss_family = peer.raw.ss_family;
    }
  } else {
    if (peer_address(fd, peer)) e.set_state(kEstablished);
    int queued = 0;
    if (::ioctl(fd, FIONREAD, &queued) == 0 && queued > 0)
      context.log.warn("{}: UDP packets in its queue are dropped", file.who());
  }
  e.set_src_port(source.port());
  e.set_dst_port(connection || e.state() == kEstablished ? peer.port() : 0);
  put_words(source, e.mutable_src_addr());
  put_words(peer, e.mutable_dst_addr());
  describe_socket_options(fd, file.who(), *e.mutable_opts());
  if (proto == IPPROTO_TCP) describe_tcp_options(file, e);
  if (v6) {
    e.set_v6only(try_socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY).value_or(0) != 0);
    char name[IF_NAMESIZE];
    if (source.v6().sin6_scope_id != 0 && ::if_indextoname(source.v6().sin6_scope_id, name)) e.set_ifname(name);
  }
  describe_ip_options(file, v6, *e.mutable_ip_opts());
  context.emit(entry);
  record_owner(context, file);
}

namespace {

std::string name_of(const img::inet_sk_entry& e) {
  return std::string(e.proto() == IPPROTO_TCP ? "TCP" : "UDP") + " socket " + get_address(e, true).text();
}

void apply_ip_options(int fd, const img::inet_sk_entry& e, const std::string& who) {
  const bool v6 = e.family() == AF_INET6;
  const img::ip_opts_entry& o = e.ip_opts();
  if (v6 && e.has_v6only()) set_socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, e.v6only(), who);
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

void check_entry(const img::inet_sk_entry& e) {
  const bool tcp = e.type() == SOCK_STREAM && e.proto() == IPPROTO_TCP;
  const bool udp = e.type() == SOCK_DGRAM && e.proto() == IPPROTO_UDP;
  if ((e.family() != AF_INET && e.family() != AF_INET6) || (!tcp && !udp))
    throw Refusal(
        "the images hold a socket of family " + std::to_string(e.family()) + ", protocol " + std::to_string(e.proto()),
        "only TCP and UDP can be restored");
}

}  // namespace

Fd InetRestorer::make(const img::inet_sk_entry& e, const FileOwner& owner, const FileOwner& ours) {
  check_entry(e);
  const std::string who = name_of(e);
  Fd fd(check(
      ::socket(static_cast<int>(e.family()), static_cast<int>(e.type()) | SOCK_CLOEXEC, static_cast<int>(e.proto())),
      "make", who));
  give_file(fd.get(), owner, ours, who);
  apply_socket_options(fd.get(), e.opts(), who);
  apply_ip_options(fd.get(), e, who);
  if (e.proto() == IPPROTO_TCP) apply_tcp_options(fd.get(), e, who);
  return fd;
}

Fd InetRestorer::open(const img::inet_sk_entry& e, const FileOwner& owner, const FileOwner& ours) {
  Fd fd = make(e, owner, ours);
  const std::string who = name_of(e);
  const bool tcp = e.proto() == IPPROTO_TCP;
  const bool listening = tcp && e.state() == kListen;
  if (tcp && !listening && e.state() != kClose) {
    if (tcp_close_) return fd;
    throw Refusal("the images hold a TCP connection of " + who, "use --tcp-close to restore it closed");
  }
  // Also where it is to be deaf for now: a filter that the kernel does not take shows here, not behind the gate.
  if (!hold_ || e.opts().so_filter_size() != 0) attach_own_filter(fd.get(), e.opts(), who);
  if (hold_ && e.src_port() != 0) attach_deaf_filter(fd.get(), who);
  if (e.src_port() != 0) {
    // Connections of the dumped tree may still linger in TIME_WAIT.
    if (tcp) set_socket_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, who);
    InetAddress source = get_address(e, true);
    check(::bind(fd.get(), source.get(), source.length), "bind", who);
    if (listening)
      check(::listen(fd.get(), static_cast<int>(std::min<uint32_t>(e.backlog(), INT32_MAX))), "listen on", who);
    if (tcp) set_socket_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, e.opts().reuseaddr(), who);
  }
  if (!tcp && e.state() == kEstablished) {
    InetAddress peer = get_address(e, false);
    check(::connect(fd.get(), peer.get(), peer.length), "connect to " + peer.text() + " the", who);
  }
  return fd;
}

void InetRestorer::remember(const img::inet_sk_entry& e, int fd) {
  if (hold_) held_.push_back({&e, fd});
}

void InetRestorer::release(std::vector<std::string>& failures) {
  for (const Held& held : held_) try {
      attach_own_filter(held.fd, held.entry->opts(), name_of(*held.entry));
    } catch (const Error& e) {
      log_.error("{}", e.what());
      failures.emplace_back(e.what());
    }
  held_.clear();
}

}  // namespace migrate
