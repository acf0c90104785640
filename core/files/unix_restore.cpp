#include "core/files/unix_restore.h"

#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <thread>

#include "core/files/hidden_sockets.h"
#include "core/files/paths.h"
#include "core/files/socket_options.h"
#include "core/files/unix_address.h"
#include "core/files/unix_queue.h"
#include "core/files/unix_socket.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/sk-packet.pb.h"

namespace migrate {
namespace {

constexpr uint32_t kMostWaiting = 1 << 20;

Fd new_socket(const img::unix_sk_entry& e, int flags = 0) {
  return Fd(check(::socket(AF_UNIX, static_cast<int>(e.type()) | SOCK_CLOEXEC | flags, 0), "make", "a Unix socket"));
}

/// As sent by somebody: root may say by whom, if the process is there; else it was this one.
ssize_t send_from(int fd, std::span<const std::byte> bytes, std::optional<ucred> from, const UnixAddress* to,
                  int flags) {
  iovec iov{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  if (to != nullptr) {
    header.msg_name = const_cast<sockaddr*>(to->get());
    header.msg_namelen = to->length;
  }
  const auto send = [&] { return ::sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL | flags); };
  if (!from) return send();
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_CREDENTIALS;
  c->cmsg_len = CMSG_LEN(sizeof(ucred));
  if (from->pid <= 0) from->pid = ::getpid();
  std::memcpy(CMSG_DATA(c), &*from, sizeof *from);
  const ssize_t n = send();
  if (n >= 0 || errno != ESRCH) return n;
  from->pid = ::getpid();
  std::memcpy(CMSG_DATA(c), &*from, sizeof *from);
  return send();
}

}  // namespace

UnixRestorer::UnixRestorer(const ImageSet& images, const FileOwners& owners, const SocketStates& states,
                           const SocketMaker& maker, TaskPaths& paths, bool hold, std::string mark, Logger& log)
    : owners_(owners),
      states_(states),
      maker_(maker),
      paths_(paths),
      names_(paths, std::move(mark)),
      hold_(hold),
      log_(log) {
  read_queues(images);
}

void UnixRestorer::read_queues(const ImageSet& images) {
  auto reader = images.read("sk-queues.img", magic::kSkQueues);
  img::sk_packet_entry packet;
  while (reader && reader->next(packet)) {
    const auto data = reader->raw(packet.length());
    if (packet.scm_size() != 0)
      throw Refusal("the images hold descriptors on their way through a Unix socket", "they cannot be restored yet");
    queues_[packet.id_for()].push_back({data});
  }
  auto senders = images.read(kPacketSendersImage, kPacketSendersMagic);
  ext::PacketSender sender;
  while (senders && senders->next(sender)) {
    const auto queue = queues_.find(sender.id_for());
    if (queue == queues_.end() || sender.packet() >= queue->second.size())
      throw Corrupt(kPacketSendersImage, "it names a packet that is not there");
    Packet& sent = queue->second[sender.packet()];
    sent.address = clean_name(sender.address());
    sent.urgent = sender.urgent();
    if (sent.urgent > kUrgentTaken || (sent.urgent != 0 && sent.bytes.size() != (sent.urgent == kUrgent ? 1U : 0U)))
      throw Corrupt(kPacketSendersImage, "an urgent byte is not one");
    // Nobody's, as long as it may not be theirs.
    if (!sender.has_uid() || !owners_.allows(sender.uid(), sender.gid())) continue;
    sent.from = ucred{static_cast<pid_t>(sender.pid()), sender.uid(), sender.gid()};
  }
}

void UnixRestorer::add(const Entry& entry, const Holders& holders) {
  const bool fresh = (entry.uflags() & kUnixExternal) != 0
                         ? external_.emplace(entry.ino(), &entry).second
                         : sockets_.emplace(entry.ino(), Socket{&entry, Fd(), &holders, {}}).second;
  if (!fresh) throw Corrupt("files.img", "a Unix socket stands twice");
}

UnixRestorer::Socket* UnixRestorer::by_inode(uint32_t ino) {
  const auto it = sockets_.find(ino);
  return it == sockets_.end() ? nullptr : &it->second;
}

void UnixRestorer::check_entries() {
  for (const auto& [ino, s] : sockets_) {
    const Entry& e = *s.entry;
    const bool datagram = e.type() == SOCK_DGRAM;
    if (!datagram && e.type() != SOCK_STREAM && e.type() != SOCK_SEQPACKET)
      throw Corrupt("files.img", "a Unix socket has an unknown type");
    if (e.state() != kSocketEstablished && e.state() != kSocketClose && e.state() != kSocketListen)
      throw Corrupt("files.img", who_is(e) + " is in an unknown state");
    if (e.state() == kSocketListen && (e.peer() != 0 || datagram || e.name().empty()))
      throw Corrupt("files.img", who_is(e) + " cannot listen");
    if (!e.name().empty()) UnixAddress{e.name()};
    if (e.peer() == 0) continue;
    const Socket* peer = by_inode(e.peer());
    if (peer == nullptr && !(datagram && external_.contains(e.peer())))
      throw Corrupt("files.img", who_is(e) + " has no peer");
    if (peer != nullptr && peer->entry->type() != e.type())
      throw Corrupt("files.img", who_is(e) + " has a peer of another type");
    if (peer != nullptr && peer->entry->state() == kSocketListen) {
      const ext::SocketState* state = states_.find(e.id());
      if (e.state() != kSocketEstablished || state == nullptr || state->waits() == 0 || state->waits() > kMostWaiting)
        throw Corrupt("files.img", who_is(e) + " cannot wait to be accepted");
      continue;
    }
    if (!datagram && (peer->entry->peer() != ino || e.peer() == ino))
      throw Corrupt("files.img", who_is(e) + " is not its peer's peer");
  }
}

std::map<uint32_t, Fd> UnixRestorer::open_all() {
  check_entries();
  for (auto& [ino, s] : sockets_) plan(s);
  make_pairs();
  make_connections();
  make_singles();
  make_waiting();
  for (auto& [ino, s] : sockets_) connect_datagram(s);
  for (auto& [ino, s] : sockets_) fill_queue(s);
  leave_unread();
  for (auto& [ino, s] : sockets_) settle(s);
  widows_.clear();
  gone_.clear();
  unseen_.clear();
  std::map<uint32_t, Fd> result;
  for (auto& [ino, s] : sockets_)
    if (!result.emplace(s.entry->id(), std::move(s.fd)).second)
      throw Corrupt("files.img", "a Unix socket stands twice");
  if (!hold_) {
    std::vector<std::string> failures;
    publish(failures);
    if (!failures.empty()) throw Error(failures.front());
  }
  return result;
}

FileOwner UnixRestorer::ours() const { return {paths_.self().uid, paths_.self().gid, {}, {}}; }

/// Whether the kernel knows who the peer is; images that do not say it are of sockets for which it does.
bool UnixRestorer::told(const Socket& a) const {
  const FileOwner* owner = owners_.recorded(a.entry->id());
  return owner == nullptr || owner->peer;
}

void UnixRestorer::plan(Socket& a) {
  a.made_as = ours();
  if (a.planned || a.entry->state() == kSocketListen) return;
  const uint32_t peer = a.entry->peer();
  if (peer == 0) {
    // A named datagram socket counts as established as soon as somebody connects to it.
    const bool alone = a.entry->type() == SOCK_DGRAM && !a.entry->name().empty();
    if (a.entry->state() == kSocketEstablished && !alone) plan_widow(a);
    return;
  }
  Socket* b = by_inode(peer);
  if (b != nullptr && b->entry->state() == kSocketListen) {
    a.planned = true;
    callers_[peer].push_back({states_.find(a.entry->id())->waits(), &a});
    return;
  }
  // Datagram sockets that merely send to a named one are connected later, by that name; so are two that are connected
  // to each other, of which the kernel does not tell who did it, as it does of a pair.
  if (b == nullptr || b == &a || b->entry->peer() != a.entry->ino()) return;
  const auto reachable = [](const Entry& e) { return !e.name().empty() && !e.deleted(); };
  const bool by_name = a.entry->type() == SOCK_DGRAM && reachable(*a.entry) && reachable(*b->entry);
  if (by_name && !told(a) && !told(*b)) return;
  plan_pair(a, *b);
}

bool UnixRestorer::listens(const std::string& name) const {
  return std::any_of(sockets_.begin(), sockets_.end(), [&](const auto& s) {
    return s.second.entry->state() == kSocketListen && s.second.entry->name() == name;
  });
}

void UnixRestorer::plan_pair(Socket& a, Socket& b) {
  a.planned = b.planned = true;
  const bool named = !a.entry->name().empty() || !b.entry->name().empty();
  if (!named || a.entry->type() == SOCK_DGRAM) {
    if (told(a) && told(b) && owners_.peer(a.entry->id(), *a.holders) != owners_.peer(b.entry->id(), *b.holders) &&
        owners_.recorded(a.entry->id()) != nullptr)
      throw Corrupt(kFileOwnersImage, "the ends of a pair of Unix sockets were made by two");
    pairs_.push_back({&a, &b});
    return;
  }
  Socket* server = a.entry->name().empty() || (!b.entry->name().empty() && listens(b.entry->name())) ? &b : &a;
  Socket* client = server == &a ? &b : &a;
  // Each end tells of the other: who connected, and who called listen(2).
  connections_.push_back({server, client, owners_.peer(client->entry->id(), *client->holders),
                          owners_.peer(server->entry->id(), *server->holders)});
}

void UnixRestorer::plan_widow(Socket& a) {
  Entry& entry = gone_entries_.emplace_back();
  entry.set_id(a.entry->id());  // tells of the same maker
  entry.set_type(a.entry->type());
  Socket& b = gone_.emplace_back(Socket{&entry, Fd(), a.holders, ours()});
  plan_pair(a, b);
  widows_.emplace(a.entry->ino(), &b);
}

void UnixRestorer::make_pairs() {
  SocketBatch batch(maker_);
  for (const Pair& pair : pairs_) {
    const PeerCredentials by = owners_.peer(pair.a->entry->id(), *pair.a->holders);
    SocketStep step;
    step.type = static_cast<int>(pair.a->entry->type());
    batch.add(by, step, [&pair, by](Fd first, Fd second) {
      pair.a->fd = std::move(first);
      pair.b->fd = std::move(second);
      pair.a->made_as = pair.b->made_as = {by.uid, by.gid, {}};
    });
  }
  batch.run();
  for (const Pair& pair : pairs_)
    for (Socket* end : {pair.a, pair.b})
      if (!end->entry->name().empty()) bind_name(*end);
}

/// Those to one listening socket together, as many at a time as wait in the smallest queue that a system may allow.
void UnixRestorer::make_connections() {
  constexpr size_t kAtOnce = 32;
  const auto same = [](const Connection& x, const Connection& y) {
    const Entry &a = *x.server->entry, &b = *y.server->entry;
    return a.type() == b.type() && a.name() == b.name() && a.name_dir() == b.name_dir() && x.listener == y.listener;
  };
  std::span<Connection> rest(connections_);
  while (!rest.empty()) {
    const auto end =
        std::partition(rest.begin() + 1, rest.end(), [&](const Connection& c) { return same(rest[0], c); });
    const auto size = std::min(static_cast<size_t>(end - rest.begin()), kAtOnce);
    connect_all(rest.first(size));
    rest = rest.subspan(size);
  }
}

/// An accepted socket shares its listener's address: a listener of that name, where nobody sees it, makes them.
void UnixRestorer::connect_all(std::span<Connection> connections) {
  const Entry& server = *connections[0].server->entry;
  const UnixAddress address(server.name());
  Fd listener, file;
  backstage([&] {
    listener = new_socket(server);
    bind_backstage(listener.get(), server);
    if (abstract_name(server.name())) return;
    // connect(2) wants to write to it.
    const std::string path = clean_name(server.name());
    check(::chmod(path.c_str(), 0777), "set the mode of", path);
    file = open_path(path, O_PATH | O_NOFOLLOW);
  });
  SocketBatch batch(maker_);
  SocketStep listen;
  listen.kind = SocketStep::Kind::listen;
  listen.backlog = static_cast<int>(connections.size());
  listen.socket = listener.get();
  batch.add(connections[0].listener, listen);
  batch.run();
  std::vector<Connection*> order;
  for (Connection& c : connections) {
    c.client->fd = new_socket(*c.client->entry, SOCK_NONBLOCK);
    SocketStep step;
    step.kind = SocketStep::Kind::connect;
    step.socket = c.client->fd.get();
    step.file = file.get();
    step.name = address.raw;
    step.length = address.length;
    batch.add(c.connector, step, [&order, &c](const Fd&, const Fd&) { order.push_back(&c); });
  }
  batch.run();
  for (Connection* c : order) {
    c->server->fd.reset(
        check(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC), "accept on", who_is(*c->server->entry)));
    if (!c->client->entry->name().empty()) backstage([&] { bind_backstage(c->client->fd.get(), *c->client->entry); });
  }
}

SocketStep UnixRestorer::listen_step(const Socket& a, size_t backlog) {
  SocketStep step;
  step.kind = SocketStep::Kind::listen;
  step.backlog = static_cast<int>(std::min<size_t>(backlog, INT32_MAX));
  step.socket = a.fd.get();
  return step;
}

void UnixRestorer::make_singles() {
  SocketBatch batch(maker_);
  for (auto& [ino, s] : sockets_) {
    if (s.planned) continue;
    const Entry& e = *s.entry;
    s.fd = new_socket(e);
    if (!e.name().empty()) bind_name(s);
    if (e.state() != kSocketListen) continue;
    // Those that wait may be more than a program lets in by now.
    const auto callers = callers_.find(ino);
    const size_t waiting = callers == callers_.end() ? 0 : callers->second.size();
    batch.add(owners_.peer(e.id(), *s.holders), listen_step(s, std::max<size_t>(e.backlog(), waiting)));
  }
  batch.run();
}

void UnixRestorer::make_waiting() {
  for (auto& [ino, callers] : callers_) {
    std::ranges::sort(callers, {}, &Caller::place);
    Socket& listener = sockets_.at(ino);
    const Entry& e = *listener.entry;
    // Some of its options are those of a connection from when that was made (unix_stream_connect(), Linux 6.16).
    apply_socket_options(listener.fd.get(), e.opts(), who_is(e));
    states_.apply(e.id(), listener.fd.get(), SocketOption::When::bound, who_is(e));
    let_connect(listener, callers);
    if (callers.size() <= e.backlog()) continue;
    SocketBatch batch(maker_);
    batch.add(owners_.peer(e.id(), *listener.holders), listen_step(listener, e.backlog()));
    batch.run();
  }
}

/// In their order, which the steps of several makers do not keep.
void UnixRestorer::let_connect(const Socket& listener, const std::vector<Caller>& callers) {
  const UnixAddress address(listener.entry->name());
  Fd file;
  std::string self;
  mode_t mode = 0;
  if (!abstract_name(listener.entry->name())) {
    const auto unseen = unseen_.find(listener.entry->ino());
    file = unseen != unseen_.end() ? unseen->second.dup()
                                   : open_path(reachable_name(*listener.entry), O_PATH | O_NOFOLLOW);
    self = fd_link(file.get());
    mode = stat_cached(file.get(), "", AT_EMPTY_PATH, who_is(*listener.entry)).stx_mode & 07777;
    // connect(2) wants to write to it. Nobody else can reach it by now.
    check(::chmod(self.c_str(), 0777), "set the mode of", who_is(*listener.entry));
  }
  for (const Caller& caller : callers) {
    Socket& a = *caller.socket;
    a.fd = new_socket(*a.entry, SOCK_NONBLOCK);
    // Who it was the kernel does not tell before the connection is accepted: most likely who has it.
    const FileCredentials& who = a.holders->front();
    const uint32_t pid = std::min(states_.find(a.entry->id())->connector(), static_cast<uint32_t>(kMaxPid));
    SocketBatch batch(maker_);
    SocketStep step;
    step.kind = SocketStep::Kind::connect;
    step.socket = a.fd.get();
    step.file = file.get();
    step.name = address.raw;
    step.length = address.length;
    batch.add({pid, who.uid, who.gid, who.groups}, step);
    batch.run();
    if (!a.entry->name().empty()) backstage([&] { bind_backstage(a.fd.get(), *a.entry); });
  }
  if (file) check(::chmod(self.c_str(), mode), "set the mode of", who_is(*listener.entry));
}

void UnixRestorer::bind_name(Socket& a) {
  const std::string path = clean_name(a.entry->name());
  if (abstract_name(path)) {
    const UnixAddress address(path);
    check(::bind(a.fd.get(), address.get(), address.length), "bind", who_is(*a.entry));
    return;
  }
  if (a.entry->deleted())
    return backstage([&] {
      bind_backstage(a.fd.get(), *a.entry);
      unseen_[a.entry->ino()] = open_path(path, O_PATH | O_NOFOLLOW);
    });
  const ext::SocketState* state = states_.find(a.entry->id());
  names_.bind(a.fd.get(), *a.entry, state == nullptr ? "" : state->file(), *a.holders);
}

/// A name under which a socket of ours can be connected to now, before it is published.
std::string UnixRestorer::reachable_name(const Entry& entry) {
  if (std::string hidden = names_.reachable(entry.ino()); !hidden.empty()) return hidden;
  if (abstract_name(entry.name())) return entry.name();
  if (const auto file = unseen_.find(entry.ino()); file != unseen_.end()) return fd_link(file->second.get());
  throw Refusal("the images hold a socket connected to " + who_is(entry) + ", which has no name any more",
                "it cannot be restored");
}

void UnixRestorer::connect_datagram(Socket& a) {
  const uint32_t peer = a.entry->peer();
  if (a.entry->type() != SOCK_DGRAM || peer == 0) return;
  const auto external = external_.find(peer);
  if (external != external_.end()) return connect_external(a, *external->second);
  const Socket* b = by_inode(peer);
  if (b == nullptr) throw Corrupt("files.img", "a Unix socket's peer is missing");
  if (a.planned) return;  // in a pair
  const UnixAddress address(reachable_name(*b->entry));
  check(::connect(a.fd.get(), address.get(), address.length), "connect to", who_is(*b->entry));
}

void UnixRestorer::connect_external(Socket& a, const Entry& to) {
  if (!leads_to_log(to.name())) return connect_by_name(a, to);
  std::string why;
  for (const std::string& name : {std::string(to.name().c_str()), std::string("/dev/log")}) {
    Entry log = to;
    log.set_name(name);
    log.clear_name_dir();
    try {
      return connect_by_name(a, log);
    } catch (const Error& e) {
      why = e.what();
    }
  }
  log_.warn("{}: it is not connected to the system's log, until syslog(3) does it: {}", who_is(*a.entry), why);
}

/// Through the socket's own right: connect(2) wants to write to the file.
void UnixRestorer::connect_by_name(Socket& a, const Entry& to) {
  const std::string path = clean_name(to.name());
  if (abstract_name(path)) {
    const UnixAddress address(path);
    check(::connect(a.fd.get(), address.get(), address.length), "connect to", who_is(to));
    return;
  }
  paths_.attempt(*a.holders, who_is(to), [&](Right right) {
    if (right == Right::root) throw Denied("the images do not say whose it was");
    const Fd file = paths_.find_followed(right, path);
    const UnixAddress address(fd_link(file.get()));
    check(::connect(a.fd.get(), address.get(), address.length), "connect to", who_is(to));
  });
}

/// Sockets that are there for one queue.
struct UnixRestorer::Senders {
  Fd unnamed;
  std::map<std::string, Fd> named;
};

namespace {

Fd bound_like(const img::unix_sk_entry& to, const std::string& address) {
  img::unix_sk_entry e;
  e.set_type(to.type());
  e.set_name(address);
  if (!abstract_name(address)) e.set_name_dir("/");
  Fd fd = new_socket(e);
  backstage([&] { bind_backstage(fd.get(), e); });
  return fd;
}

/// Where nobody else has its abstract name: files are found from there all the same.
Fd bound_elsewhere(const img::unix_sk_entry& to, const std::string& address) {
  Fd fd;
  int reason = 0;
  std::thread([&] {
    try {
      check(::unshare(CLONE_NEWNET), "make", "a network namespace");
      fd = bound_like(to, address);
    } catch (const Error& e) {
      reason = e.code() == 0 ? EIO : e.code();
    }
  }).join();
  if (!fd) throw Error("bind a sender's name for", who_is(to), reason);
  return fd;
}

}  // namespace

/// A datagram tells by which name its sender's socket is bound, also when that is closed.
int UnixRestorer::named_sender(Socket& a, const std::string& address, Senders& senders) {
  for (auto& [ino, s] : sockets_)
    if (s.entry->type() == SOCK_DGRAM && clean_name(s.entry->name()) == address) return s.fd.get();
  Fd& made = senders.named[address];
  if (made) return made.get();
  try {
    made = bound_like(*a.entry, address);
  } catch (const Error& e) {
    if (e.code() != EADDRINUSE || abstract_name(a.entry->name())) throw;
    made = bound_elsewhere(*a.entry, address);
  }
  return made.get();
}

/// A socket whose messages get there.
int UnixRestorer::sender_to(Socket& a, const std::string& address, Senders& senders) {
  if (const auto widow = widows_.find(a.entry->ino()); widow != widows_.end()) {
    Socket& gone = *widow->second;
    if (!address.empty() && gone.entry->name().empty()) {
      Entry& entry = gone_entries_.emplace_back(*gone.entry);
      entry.set_name(address);
      if (!abstract_name(address)) entry.set_name_dir("/");
      backstage([&] { bind_backstage(gone.fd.get(), entry); });
      gone.entry = &entry;
    }
    return gone.fd.get();
  }
  const Socket* peer = by_inode(a.entry->peer());
  if (peer != nullptr && peer->entry->peer() == a.entry->ino()) return peer->fd.get();
  if (a.entry->type() != SOCK_DGRAM) throw Corrupt("sk-queues.img", who_is(*a.entry) + " has data but no peer");
  if (!address.empty()) return named_sender(a, address, senders);
  if (!senders.unnamed) senders.unnamed = new_socket(*a.entry);
  return senders.unnamed.get();
}

void UnixRestorer::put_back(Socket& a, const Packet& packet, int sender) {
  const std::string who = who_is(*a.entry);
  const UnixAddress* to = nullptr;
  std::optional<UnixAddress> address;
  const Socket* peer = by_inode(a.entry->peer());
  const bool pair = widows_.contains(a.entry->ino()) || (peer != nullptr && peer->fd.get() == sender);
  if (!pair) to = &address.emplace(reachable_name(*a.entry));
  const auto send = [&](std::span<const std::byte> bytes, int flags) {
    const ssize_t n = send_from(sender, bytes, packet.from, to, flags);
    if (n < 0) throw Error("put data back into the queue of", who, errno);
    return static_cast<size_t>(n);
  };
  if (packet.urgent != 0) {
    if (a.entry->type() != SOCK_STREAM) throw Corrupt(kPacketSendersImage, "a message is urgent");
    std::byte byte = packet.urgent == kUrgent ? packet.bytes.front() : std::byte{};
    send(std::span(&byte, 1), MSG_OOB);
    if (packet.urgent == kUrgentTaken)
      check(::recv(a.fd.get(), &byte, 1, MSG_OOB | MSG_DONTWAIT), "take an urgent byte from", who);
    return;
  }
  auto rest = packet.bytes;
  do rest = rest.subspan(send(rest, 0));
  while (!rest.empty());
}

void UnixRestorer::fill_queue(Socket& a) {
  const auto queue = queues_.find(a.entry->id());
  if (queue == queues_.end()) return;
  size_t total = 0;
  for (const Packet& packet : queue->second) total += packet.bytes.size();
  // Room for data and the kernel's overhead; the right size is set afterwards.
  const int room =
      static_cast<int>(std::min<size_t>(total * 4 + queue->second.size() * 4096 + (1 << 20), INT32_MAX / 2));
  Senders senders;
  std::set<int> roomy;
  for (const Packet& packet : queue->second) {
    const int sender = sender_to(a, packet.address, senders);
    if (roomy.insert(sender).second && ::setsockopt(sender, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) != 0)
      ::setsockopt(sender, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    put_back(a, packet, sender);
  }
}

/// A peer that is closed with data unread resets its socket (unix_release_sock()).
void UnixRestorer::leave_unread() {
  for (const auto& [ino, gone] : widows_) {
    const Socket& a = sockets_.at(ino);
    const ext::SocketState* state = states_.find(a.entry->id());
    if (state == nullptr || !state->reset()) continue;
    check(::send(a.fd.get(), "", 1, MSG_NOSIGNAL | MSG_DONTWAIT), "send something to the peer of", who_is(*a.entry));
  }
}

void UnixRestorer::settle(Socket& a) {
  const std::string who = who_is(*a.entry);
  give_file(a.fd.get(), owners_.owner(a.entry->id(), *a.holders), a.made_as, who);
  apply_socket_options(a.fd.get(), a.entry->opts(), who);
  if (a.entry->state() != kSocketListen) {
    // shutdown(2) counts from 0 what the image counts from 1.
    const int how = static_cast<int>(a.entry->shutdown());
    const bool connected = a.entry->state() == kSocketEstablished || a.entry->peer() != 0;
    if (how != 0 && connected && widows_.count(a.entry->ino()) == 0)
      check(::shutdown(a.fd.get(), how - 1), "shut down", who);
  }
  states_.apply(a.entry->id(), a.fd.get(), SocketOption::When::bound, who);
  // First its own, so that one that the kernel does not take shows before the gate.
  if (a.entry->opts().so_filter_size() != 0) attach_own_filter(a.fd.get(), a.entry->opts(), who);
  if (a.entry->type() == SOCK_DGRAM && hold_ && !a.entry->name().empty()) {
    attach_deaf_filter(a.fd.get(), who);
    deaf_.emplace(a.entry->ino(), Deaf{a.fd.get(), a.entry});
  } else {
    states_.apply(a.entry->id(), a.fd.get(), SocketOption::When::sealed, who);
  }
}

void UnixRestorer::publish(std::vector<std::string>& failures) {
  const auto attempt = [&](const auto& work) {
    try {
      work();
    } catch (const Error& e) {
      log_.error("{}", e.what());
      failures.emplace_back(e.what());
    }
  };
  for (const auto& [ino, d] : deaf_)
    attempt([this, &d = d] {
      attach_own_filter(d.socket, d.entry->opts(), who_is(*d.entry));
      states_.apply(d.entry->id(), d.socket, SocketOption::When::sealed, who_is(*d.entry));
    });
  deaf_.clear();
  for (const auto& [ino, s] : sockets_) attempt([&, ino = ino] { names_.publish(ino); });
}

}  // namespace migrate
