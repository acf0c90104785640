#include "core/files/unix_restore.h"

#include <sys/socket.h>

#include <algorithm>

#include "core/files/hidden_sockets.h"
#include "core/files/paths.h"
#include "core/files/socket_options.h"
#include "core/files/unix_address.h"
#include "core/files/unix_socket.h"
#include "ext/ext.pb.h"

namespace migrate {
namespace {

constexpr uint32_t kMostWaiting = 1 << 20;

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
  for (Socket& s : gone_) s.number = s.fd.get();
  std::map<uint32_t, Fd> result;
  for (auto& [ino, s] : sockets_) {
    s.number = s.fd.get();
    if (!result.emplace(s.entry->id(), std::move(s.fd)).second)
      throw Corrupt("files.img", "a Unix socket stands twice");
  }
  return result;
}

void UnixRestorer::fill(const std::map<uint32_t, int>& opened) {
  for (auto& [ino, s] : sockets_) fill_queue(s, opened);
  leave_unread();
  for (auto& [ino, s] : sockets_) settle(s);
  widows_.clear();
  gone_.clear();
  unseen_.clear();
  if (hold_) return;
  std::vector<std::string> failures;
  publish(failures);
  if (!failures.empty()) throw Error(failures.front());
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
    batch.add(owners_.peer(e.id(), *s.holders), listen_step(s.fd.get(), std::max<size_t>(e.backlog(), waiting)));
  }
  batch.run();
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

void UnixRestorer::settle(Socket& a) {
  const std::string who = who_is(*a.entry);
  give_file(a.number, owners_.owner(a.entry->id(), *a.holders), a.made_as, who);
  apply_socket_options(a.number, a.entry->opts(), who);
  if (a.entry->state() != kSocketListen) {
    // shutdown(2) counts from 0 what the image counts from 1.
    const int how = static_cast<int>(a.entry->shutdown());
    const bool connected = a.entry->state() == kSocketEstablished || a.entry->peer() != 0;
    if (how != 0 && connected && widows_.count(a.entry->ino()) == 0)
      check(::shutdown(a.number, how - 1), "shut down", who);
  }
  states_.apply(a.entry->id(), a.number, SocketOption::When::bound, who);
  // First its own, so that one that the kernel does not take shows before the gate.
  if (a.entry->opts().so_filter_size() != 0) attach_own_filter(a.number, a.entry->opts(), who);
  if (a.entry->type() == SOCK_DGRAM && hold_ && !a.entry->name().empty()) {
    attach_deaf_filter(a.number, who);
    deaf_.emplace(a.entry->ino(), Deaf{a.number, a.entry});
  } else {
    states_.apply(a.entry->id(), a.number, SocketOption::When::sealed, who);
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
