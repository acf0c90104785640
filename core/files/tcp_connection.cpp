#include "core/files/tcp_connection.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <set>
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

OpenFile copy_of(const OpenFile& file, bool hold) {
  OpenFile copy;
  copy.proc = file.proc;
  copy.fd = file.fd;
  if (hold) copy.ours = file.ours.dup();
  copy.link = file.link;
  copy.st = file.st;
  copy.info = file.info;
  copy.id = file.id;
  copy.domain = file.domain;
  return copy;
}

Refusal has_urgent_data(const OpenFile& file) {
  return {file.who() + ", a TCP connection with urgent data (MSG_OOB)", "let the program read it first"};
}

/// What cannot be put back as it is.
void check_queue(const OpenFile& file) {
  const int fd = file.ours.get();
  if (try_socket_option(fd, SOL_SOCKET, SO_PEEK_OFF).value_or(-1) >= 0)
    throw Refusal(file.who() + ", a TCP connection with a peek offset (SO_PEEK_OFF)", "turn that off first");
  char byte;
  const ssize_t n = ::recv(fd, &byte, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT);
  if (n > 0 || (n < 0 && errno == EAGAIN)) throw has_urgent_data(file);
  // With SO_OOBINLINE that call tells nothing.
  pollfd p{fd, POLLPRI, 0};
  if (check(::poll(&p, 1, 0), "poll", file.who()) > 0 && (p.revents & POLLPRI) != 0) throw has_urgent_data(file);
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

TcpConnections::End* TcpConnections::add(const OpenFile& file, bool hold) {
  if (try_socket_option(file.ours.get(), SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP ||
      try_socket_option(file.ours.get(), SOL_SOCKET, SO_TYPE) != SOCK_STREAM)
    return nullptr;
  const auto state = static_cast<TcpState>(tcp_state_of(file));
  InetAddress here, there;
  if (!is_connection(state) || !own_address(file.ours.get(), here) || !peer_address(file.ours.get(), there))
    return nullptr;
  ends_.push_back(std::make_unique<End>(End{copy_of(file, hold), state, here.key(), there.key(), there.is_loopback()}));
  return ends_.back().get();
}

bool TcpConnections::take(const OpenFile& file) { return add(file, true) != nullptr; }

bool TcpConnections::look(const OpenFile& file) {
  if (context_.options.tcp_close) return false;
  if (add(file, false) == nullptr) return false;
  check_queue(file);
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

const std::map<std::string, TcpConnections::Line>& TcpConnections::lines(const ProcDir& task) {
  if (lines_) return *lines_;
  lines_.emplace();
  for (const auto& [name, family] : {std::pair("net/tcp", AF_INET), std::pair("net/tcp6", AF_INET6)}) {
    std::istringstream all;
    try {
      all.str(task.read(name));
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
      continue;  // no IPv6
    }
    std::string text;
    std::getline(all, text);
    while (std::getline(all, text)) {
      const NetTableLine line = parse_net_table_line(text, family);
      InetAddress here = inet_address(line.address, line.port), there = inet_address(line.peer_address, line.peer_port);
      lines_->emplace(here.key() + there.key(), Line{line.state, line.inode, line.received});
    }
  }
  return *lines_;
}

std::optional<TcpConnections::Line> TcpConnections::other_end(const End& end) {
  const auto& all = lines(*end.file.proc);
  const auto it = all.find(end.there + end.here);
  return it == all.end() ? std::nullopt : std::optional(it->second);
}

/// Whether the other end was closed by who had it, which was somebody here: nothing of it will come any more.
bool TcpConnections::peer_is_gone(const End& end) {
  if (end.state != TcpState::close_wait) return false;
  const auto line = other_end(end);
  return line ? line->inode == 0 : end.loopback;
}

/// Of a running tree: it may have closed it, or opened something else there, or its state is another.
bool TcpConnections::still_the_same(End& end) {
  try {
    const auto pidfd = open_pidfd(end.file.proc->pid());
    if (!pidfd || end.file.proc->link("fd/" + std::to_string(end.file.fd)) != end.file.link) return false;
    OpenFile now = copy_of(end.file, false);
    now.take(get_remote_fd(pidfd->get(), end.file.fd));
    if (inode_of(now.st) != inode_of(end.file.st)) return false;
    end.state = static_cast<TcpState>(tcp_state_of(now));
    return is_connection(end.state);
  } catch (const Error& e) {
    if (!descriptor_is_gone(e)) throw;
    return false;
  }
}

void TcpConnections::demand_inside(const RunningTree& tree) {
  constexpr int kLooks = 40;
  constexpr timespec kBetween{0, 5'000'000};
  pair();
  std::vector<End*> doubtful;
  for (const auto& end : ends_)
    if (end->peer == nullptr) doubtful.push_back(end.get());
  if (doubtful.empty()) return;
  // Others' sockets, by one walk.
  std::set<std::string> outside;
  tree.look_outside([&](const ProcDir&, int, const std::string& link) {
    if (link.starts_with("socket:[")) outside.insert(link);
  });
  const auto leads_out = [&](const End& end) {
    const auto line = other_end(end);
    if (!line) return !end.loopback;
    return line->inode != 0 && outside.contains("socket:[" + std::to_string(line->inode) + "]");
  };
  // What is just being accepted, or closed, or belongs to a task that has just come, is something else in a moment.
  const auto settled = [&](End* end) {
    if (!still_the_same(*end) || peer_is_gone(*end)) return true;
    const auto line = other_end(*end);
    return line && line->inode != 0 && !leads_out(*end);
  };
  for (int looks = 0; looks < kLooks; ++looks) {
    lines_.reset();
    std::erase_if(doubtful, settled);
    if (std::ranges::all_of(doubtful, [&](const End* end) { return leads_out(*end); })) break;
    ::nanosleep(&kBetween, nullptr);
  }
  Refusals refusals;
  for (End* end : doubtful)
    refusals.ask([&] {
      const auto pidfd = open_pidfd(end->file.proc->pid());
      if (!pidfd || !still_the_same(*end)) return;
      end->file.take(get_remote_fd(pidfd->get(), end->file.fd));
      check_inet_socket(end->file, context_.options);
    });
  refusals.demand_none();
}

void TcpConnections::dump() {
  pair();
  for (const auto& end : ends_) {
    if (end->peer == nullptr && !peer_is_gone(*end)) {
      sockets_.dump(end->file);
      end->file.ours.reset();
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
  // SIOCINQ stops at an urgent byte, also at one that was read already; the tables tell all, and the peer's end as one.
  const auto& all = lines(*end.file.proc);
  if (const auto line = all.find(end.here + end.there); line != all.end()) {
    const size_t rest = line->second.received - std::min<size_t>(line->second.received, end.received.size());
    if (rest > 1 || (rest == 1 && end.state == TcpState::established)) throw has_urgent_data(end.file);
  }
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
  for (const auto& end : ends_)
    if (end->whole) end_silently(end->file.ours.get());
  ends_.clear();
}

}  // namespace migrate
