// Unix sockets that are connected: pairs, connections, ones that nobody has accepted yet, and datagram sockets to a
// name.
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>

#include "core/files/paths.h"
#include "core/files/socket_options.h"
#include "core/files/unix_address.h"
#include "core/files/unix_restore.h"
#include "core/files/unix_socket.h"
#include "ext/ext.pb.h"

namespace migrate {
namespace {

/// `file`: -1 for an abstract name.
SocketStep connect_step(int socket, int file, const UnixAddress& to) {
  SocketStep step;
  step.kind = SocketStep::Kind::connect;
  step.socket = socket;
  step.file = file;
  step.name = to.raw;
  step.length = to.length;
  return step;
}

}  // namespace

SocketStep UnixRestorer::listen_step(int socket, size_t backlog) {
  SocketStep step;
  step.kind = SocketStep::Kind::listen;
  step.backlog = static_cast<int>(std::min<size_t>(backlog, INT32_MAX));
  step.socket = socket;
  return step;
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
  batch.add(connections[0].listener, listen_step(listener.get(), connections.size()));
  batch.run();
  std::vector<Connection*> order;
  for (Connection& c : connections) {
    c.client->fd = new_socket(*c.client->entry, SOCK_NONBLOCK);
    batch.add(c.connector, connect_step(c.client->fd.get(), file.get(), address),
              [&order, &c](const Fd&, const Fd&) { order.push_back(&c); });
  }
  batch.run();
  for (Connection* c : order) {
    c->server->fd.reset(
        check(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC), "accept on", who_is(*c->server->entry)));
    if (!c->client->entry->name().empty()) backstage([&] { bind_backstage(c->client->fd.get(), *c->client->entry); });
  }
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
    batch.add(owners_.peer(e.id(), *listener.holders), listen_step(listener.fd.get(), e.backlog()));
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
    batch.add({pid, who.uid, who.gid, who.groups}, connect_step(a.fd.get(), file.get(), address));
    batch.run();
    if (!a.entry->name().empty()) backstage([&] { bind_backstage(a.fd.get(), *a.entry); });
  }
  if (file) check(::chmod(self.c_str(), mode), "set the mode of", who_is(*listener.entry));
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

}  // namespace migrate
