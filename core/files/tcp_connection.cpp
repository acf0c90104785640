#include "core/files/tcp_connection.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "core/base/refusals.h"
#include "core/files/inet_address.h"
#include "core/files/inet_socket.h"
#include "core/files/net_table.h"
#include "core/files/running_tree.h"
#include "core/files/socket_options.h"
#include "core/files/tcp_repair.h"
#include "core/image/magic.h"
#include "images/tcp-stream.pb.h"

namespace migrate {
namespace {

tcp_info info_of(const OpenFile& file) {
  tcp_info info{};
  socklen_t length = sizeof info;
  check(::getsockopt(file.ours.get(), IPPROTO_TCP, TCP_INFO, &info, &length),
        "read the TCP state of socket:", file.who());
  return info;
}

size_t queued(const OpenFile& file, unsigned long request) {
  int bytes = 0;
  check(::ioctl(file.ours.get(), request, &bytes), "ask the queues of socket:", file.who());
  return static_cast<size_t>(bytes);
}

OpenFile copy_of(const OpenFile& file) {
  OpenFile copy;
  copy.proc = file.proc;
  copy.fd = file.fd;
  copy.ours = file.ours.dup();
  copy.link = file.link;
  copy.st = file.st;
  copy.info = file.info;
  copy.id = file.id;
  copy.domain = file.domain;
  return copy;
}

/// What cannot be put back as it is.
void check_queue(const OpenFile& file) {
  const int fd = file.ours.get();
  if (try_socket_option(fd, SOL_SOCKET, SO_PEEK_OFF).value_or(-1) >= 0)
    throw Refusal(file.who() + ", a TCP connection with a peek offset (SO_PEEK_OFF)", "turn that off first");
  char byte;
  const ssize_t n = ::recv(fd, &byte, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT);
  if (n > 0 || (n < 0 && errno == EAGAIN))
    throw Refusal(file.who() + ", a TCP connection with urgent data (MSG_OOB)", "let the program read it first");
}

/// What `from` has sent, or wants to send, and `to` has not received. Mostly nothing, as the counters of both tell.
std::vector<std::byte> undelivered(const OpenFile& from, TcpState from_state, const OpenFile& to, TcpState to_state) {
  const size_t unacknowledged = queued(from, SIOCOUTQ);
  if (unacknowledged == 0) return {};
  const tcp_info source = info_of(from), sink = info_of(to);
  const bool sink_has_end = has_sent_end(from_state) && to_state != TcpState::established &&
                            to_state != TcpState::fin_wait1 && to_state != TcpState::fin_wait2;
  const uint64_t received = sink.tcpi_bytes_received - (sink_has_end ? 1 : 0);
  if (source.tcpi_notsent_bytes == 0 && source.tcpi_bytes_sent - source.tcpi_bytes_retrans == received) return {};
  TcpRepair sending(from.ours.get(), from.who());
  std::vector<std::byte> data = sending.unacknowledged(unacknowledged);
  const uint32_t end = sending.sequence(TcpRepair::Queue::sent);
  uint32_t next = 0;
  {
    TcpRepair receiving(to.ours.get(), to.who());
    next = receiving.sequence(TcpRepair::Queue::received);
  }
  // The end that it has sent counts like a byte.
  size_t rest = end - next;
  if (has_sent_end(from_state) && rest > 0) --rest;
  if (rest > data.size()) throw Error("read what waits to be sent of socket:", from.who(), EIO);
  data.erase(data.begin(), data.end() - static_cast<ptrdiff_t>(rest));
  return data;
}

}  // namespace

bool is_connection(TcpState state) {
  switch (state) {
    case TcpState::established:
    case TcpState::fin_wait1:
    case TcpState::fin_wait2:
    case TcpState::close_wait:
    case TcpState::last_ack:
    case TcpState::closing:
      return true;
    default:
      return false;
  }
}

bool has_sent_end(TcpState state) {
  return state == TcpState::fin_wait1 || state == TcpState::fin_wait2 || state == TcpState::last_ack ||
         state == TcpState::closing;
}

std::string tcp_stream_name(uint32_t inode) {
  char digits[8];
  const auto end = std::to_chars(digits, digits + sizeof digits, inode, 16).ptr;
  return "tcp-stream-" + std::string(digits, end) + ".img";
}

bool TcpConnections::take(const OpenFile& file) {
  if (try_socket_option(file.ours.get(), SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP) return false;
  const auto state = static_cast<TcpState>(tcp_state_of(file));
  InetAddress here, there;
  if (!is_connection(state) || !own_address(file.ours.get(), here) || !peer_address(file.ours.get(), there))
    return false;
  auto end = std::make_unique<End>(End{copy_of(file), state, here.key(), there.key()});
  ends_.push_back(std::move(end));
  return true;
}

void TcpConnections::pair() {
  std::map<std::pair<std::string, std::string>, End*> by_addresses;
  for (const auto& end : ends_) by_addresses[{end->here, end->there}] = end.get();
  for (const auto& end : ends_) {
    const auto peer = by_addresses.find({end->there, end->here});
    // A socket can be connected to itself.
    if (peer != by_addresses.end() && peer->second != end.get()) end->peer = peer->second;
  }
}

std::optional<TcpConnections::Line> TcpConnections::other_end(const End& end) {
  if (!lines_) {
    lines_.emplace();
    for (const auto& [name, family] : {std::pair("net/tcp", AF_INET), std::pair("net/tcp6", AF_INET6)}) {
      std::istringstream lines;
      try {
        lines.str(end.file.proc->read(name));
      } catch (const Error& e) {
        if (!task_is_gone(e)) throw;
        continue;  // no IPv6
      }
      std::string text;
      std::getline(lines, text);
      while (std::getline(lines, text)) {
        const NetTableLine line = parse_net_table_line(text, family);
        InetAddress here = inet_address(line.address, line.port),
                    there = inet_address(line.peer_address, line.peer_port);
        lines_->emplace(here.key() + there.key(), Line{line.state, line.inode});
      }
    }
  }
  const auto it = lines_->find(end.there + end.here);
  return it == lines_->end() ? std::nullopt : std::optional(it->second);
}

/// Whether the other end was closed by who had it, which was somebody here: nothing of it will come any more.
bool TcpConnections::peer_is_gone(const End& end) {
  if (end.state != TcpState::close_wait) return false;
  const auto line = other_end(end);
  if (line) return line->inode == 0;
  InetAddress there;
  return peer_address(end.file.ours.get(), there) && there.is_loopback();
}

void TcpConnections::demand_inside(const RunningTree& tree) {
  pair();
  Refusals refusals;
  for (const auto& end : ends_) {
    refusals.ask([&] {
      if (end->peer != nullptr || peer_is_gone(*end)) return check_queue(end->file);
      const auto line = other_end(*end);
      // It may belong to a task that just came, or have been accepted just now.
      if (line && line->inode != 0 && !tree.outside_holder("socket:[" + std::to_string(line->inode) + "]")) return;
      check_inet_socket(end->file, context_.options);
    });
  }
  refusals.demand_none();
}

void TcpConnections::dump() {
  pair();
  for (const auto& end : ends_) {
    if (end->peer == nullptr && !peer_is_gone(*end)) {
      sockets_.dump(end->file);
      continue;
    }
    check_queue(end->file);
    sockets_.dump(end->file, static_cast<uint32_t>(end->state));
    read_queues(*end);
    end->sequence = random_sequence();
    end->whole = true;
  }
  for (const auto& end : ends_)
    if (end->whole) write_stream(*end);
}

void TcpConnections::read_queues(End& end) {
  end.received.resize(queued(end.file, SIOCINQ));
  if (!end.received.empty()) {
    const ssize_t n = ::recv(end.file.ours.get(), end.received.data(), end.received.size(), MSG_PEEK | MSG_DONTWAIT);
    if (n != static_cast<ssize_t>(end.received.size()))
      throw Error("read what was received by socket:", end.file.who(), n < 0 ? errno : EIO);
  }
  if (end.peer != nullptr) end.unsent = undelivered(end.file, end.state, end.peer->file, end.peer->state);
}

void TcpConnections::write_stream(const End& end) {
  const tcp_info info = info_of(end.file);
  img::tcp_stream_entry entry;
  entry.set_inq_len(static_cast<uint32_t>(end.received.size()));
  entry.set_inq_seq(end.sequence);
  entry.set_outq_len(static_cast<uint32_t>(end.unsent.size()));
  entry.set_unsq_len(entry.outq_len());
  entry.set_outq_seq((end.peer == nullptr ? random_sequence() : end.peer->sequence) + entry.outq_len());
  entry.set_opt_mask(info.tcpi_options);
  entry.set_snd_wscale(info.tcpi_snd_wscale);
  entry.set_rcv_wscale(info.tcpi_rcv_wscale);
  entry.set_mss_clamp(
      static_cast<uint32_t>(socket_option(end.file.ours.get(), IPPROTO_TCP, TCP_MAXSEG, end.file.who())));
  ImageWriter writer =
      context_.images.write(tcp_stream_name(static_cast<uint32_t>(end.file.st.stx_ino)), magic::kTcpStream);
  writer.entry(entry);
  writer.raw(end.received);
  writer.raw(end.unsent);
}

void TcpConnections::close_silently() noexcept {
  for (const auto& end : ends_) end_silently(end->file.ours.get());
  ends_.clear();
}

}  // namespace migrate
