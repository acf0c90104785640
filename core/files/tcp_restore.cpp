#include "core/files/tcp_restore.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

#include "core/files/inet_address.h"
#include "core/files/socket_options.h"
#include "core/files/tcp_connection.h"
#include "core/files/tcp_repair.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

constexpr uint32_t kMaxScale = 14, kMinSegment = 88, kMaxSegment = 65535;

std::string name_of(const img::inet_sk_entry& e) {
  return "the TCP connection from " + get_address(e, true).text() + " to " + get_address(e, false).text();
}

/// Only an address of this host: with IP_FREEBIND, which the program may have, any could be had.
void bind_here(int fd, const img::inet_sk_entry& e, const std::string& who) {
  const bool v6 = e.family() == AF_INET6;
  const int level = v6 ? IPPROTO_IPV6 : IPPROTO_IP;
  if (e.ip_opts().freebind()) set_socket_option(fd, level, v6 ? IPV6_FREEBIND : IP_FREEBIND, 0, who);
  InetAddress here = get_address(e, true);
  check(::bind(fd, here.get(), here.length), "bind", who);
  if (e.ip_opts().freebind()) set_socket_option(fd, level, v6 ? IPV6_FREEBIND : IP_FREEBIND, 1, who);
}

/// Sends all of it, which had room between two such sockets before.
void send_all(int fd, std::span<const std::byte> data, const img::inet_sk_entry& e) {
  constexpr int kWaitMs = 1000;
  const size_t all = data.size();
  bool forced = false;
  while (!data.empty()) {
    const ssize_t n = ::send(fd, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      data = data.subspan(static_cast<size_t>(n));
      continue;
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR) throw Error("put back what waits in", name_of(e), errno);
    pollfd p{fd, POLLOUT, 0};
    if (::poll(&p, 1, kWaitMs) > 0) continue;
    if (forced) throw Error("put back what waits in", name_of(e), ENOBUFS);
    forced = true;  // it was packed more densely
    set_socket_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, static_cast<int>(std::min<size_t>(2 * all, 1 << 29)), name_of(e));
  }
  if (forced) apply_socket_options(fd, e.opts(), name_of(e));
}

}  // namespace

void TcpPairs::add(uint32_t id, const img::inet_sk_entry& entry, Fd made) {
  End end{&entry, std::move(made), get_address(entry, true).key(), get_address(entry, false).key()};
  End& added = ends_.emplace(id, std::move(end)).first->second;
  if (!by_addresses_.emplace(std::pair(added.here, added.there), &added).second)
    throw Corrupt("files.img", name_of(entry) + " stands twice");
}

TcpPairs::End* TcpPairs::peer_of(const End& end) const {
  const auto it = by_addresses_.find({end.there, end.here});
  return it == by_addresses_.end() || it->second == &end ? nullptr : it->second;
}

bool TcpPairs::has_peer(uint32_t id) const {
  const End& end = ends_.at(id);
  return peer_of(end) != nullptr || (static_cast<TcpState>(end.entry->state()) == TcpState::close_wait &&
                                     images_.has(tcp_stream_name(end.entry->ino())));
}

Fd TcpPairs::remove(uint32_t id) {
  const auto it = ends_.find(id);
  Fd fd = std::move(it->second.fd);
  by_addresses_.erase({it->second.here, it->second.there});
  ends_.erase(it);
  return fd;
}

void TcpPairs::read_stream(End& end) {
  const std::string name = tcp_stream_name(end.entry->ino());
  auto reader = images_.read(name, magic::kTcpStream);
  if (!reader || !reader->next(end.stream)) throw Corrupt("the image folder", name + " is missing");
  end.received = reader->raw(end.stream.inq_len());
  end.unsent = reader->raw(end.stream.outq_len());
  if (end.stream.snd_wscale() > kMaxScale || end.stream.rcv_wscale() > kMaxScale ||
      end.stream.mss_clamp() < kMinSegment || end.stream.mss_clamp() > kMaxSegment)
    throw Corrupt(name, "a window or segment is impossible");
}

/// In the place of one that was closed: it is closed again when all that it had sent is there.
TcpPairs::End TcpPairs::closed_peer(const End& end) {
  static const img::inet_sk_entry kNone;
  End peer{&kNone,
           Fd(check(::socket(static_cast<int>(end.entry->family()), SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP), "make",
                    name_of(*end.entry))),
           end.there, end.here};
  peer.stream = end.stream;
  peer.stream.set_snd_wscale(end.stream.rcv_wscale());
  peer.stream.set_rcv_wscale(end.stream.snd_wscale());
  peer.stream.set_outq_seq(end.stream.inq_seq());
  peer.stream.set_inq_seq(end.stream.outq_seq());
  return peer;
}

void TcpPairs::connect(End& one, End& other) {
  const img::inet_sk_entry& e = *one.entry;
  const std::string who = name_of(e);
  const uint32_t from_one = random_sequence(), from_other = random_sequence();
  InetAddress here = get_address(e, true), there = get_address(e, false);
  {
    TcpRepair a(one.fd.get(), who), b(other.fd.get(), who);
    bind_here(one.fd.get(), e, who);
    if (other.entry->has_id()) {
      bind_here(other.fd.get(), *other.entry, who);
    } else {
      check(::bind(other.fd.get(), there.get(), there.length), "bind", who);
    }
    a.set_sequence(TcpRepair::Queue::sent, from_one);
    a.set_sequence(TcpRepair::Queue::received, from_other);
    b.set_sequence(TcpRepair::Queue::sent, from_other);
    b.set_sequence(TcpRepair::Queue::received, from_one);
    check(::connect(one.fd.get(), there.get(), there.length), "connect", who);
    InetAddress back = other.entry->has_id() ? get_address(*other.entry, false) : here;
    check(::connect(other.fd.get(), back.get(), back.length), "connect", who);
    const auto set = [](TcpRepair& repair, const img::tcp_stream_entry& s) {
      repair.set_options(s.opt_mask(), s.mss_clamp(), s.snd_wscale(), s.rcv_wscale());
    };
    set(a, one.stream);
    set(b, other.stream);
  }
}

std::map<uint32_t, Fd> TcpPairs::connect() {
  for (auto& [id, end] : ends_) read_stream(end);
  const auto send = [](const End& from, const End& to) {
    // Of what waits to be sent the receiver may have the first part already (images of CRIU's).
    const uint32_t missing = from.stream.outq_seq() - to.stream.inq_seq();
    const size_t rest = std::min<size_t>(missing, from.unsent.size());
    send_all(from.fd.get(), to.received, *to.entry);
    send_all(from.fd.get(), from.unsent.last(rest), *from.entry);
  };
  const auto end_it = [](const End& end) {
    if (has_sent_end(static_cast<TcpState>(end.entry->state())))
      check(::shutdown(end.fd.get(), SHUT_WR), "end what is sent on", name_of(*end.entry));
    if (end.entry->shutdown() == img::sk_shutdown::READ)
      check(::shutdown(end.fd.get(), SHUT_RD), "end what is read from", name_of(*end.entry));
  };
  for (auto& [id, end] : ends_) {
    if (end.done) continue;
    End gone;
    End* peer = peer_of(end);
    if (peer == nullptr) {
      gone = closed_peer(end);
      peer = &gone;
    }
    connect(end, *peer);
    send(*peer, end);
    if (peer != &gone) send(end, *peer);
    end_it(end);
    if (peer != &gone) end_it(*peer);
    end.done = peer->done = true;
  }
  std::map<uint32_t, Fd> fds;
  for (auto& [id, end] : ends_) fds.emplace(id, std::move(end.fd));
  by_addresses_.clear();
  ends_.clear();
  return fds;
}

}  // namespace migrate
