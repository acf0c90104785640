// What waited in the queues of Unix sockets: sent again, as by who had sent it.
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <thread>

#include "core/files/paths.h"
#include "core/files/unix_address.h"
#include "core/files/unix_queue.h"
#include "core/files/unix_restore.h"
#include "core/files/unix_socket.h"
#include "core/files/waiting_descriptor.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"

namespace migrate {
namespace {

/// As sent by somebody: root may say by whom, if the process is there; else it was this one.
ssize_t send_from(int fd, std::span<const std::byte> bytes, std::optional<ucred> from, std::span<const int> files,
                  const UnixAddress* to, int flags) {
  iovec iov{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(kMostInMessage * sizeof(int))> control{};
  size_t used = 0;
  const auto add = [&](int type, const void* data, size_t size) {
    auto* c = reinterpret_cast<cmsghdr*>(control.data() + used);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(c), data, size);
    used += CMSG_SPACE(size);
  };
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  if (to != nullptr) {
    header.msg_name = const_cast<sockaddr*>(to->get());
    header.msg_namelen = to->length;
  }
  const auto send = [&] {
    used = 0;
    if (from) add(SCM_CREDENTIALS, &*from, sizeof *from);
    if (!files.empty()) add(SCM_RIGHTS, files.data(), files.size_bytes());
    header.msg_control = used != 0 ? control.data() : nullptr;
    header.msg_controllen = used;
    return ::sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL | flags);
  };
  if (from && from->pid <= 0) from->pid = ::getpid();
  const ssize_t n = send();
  if (n >= 0 || errno != ESRCH || !from) return n;
  from->pid = ::getpid();
  return send();
}

}  // namespace

void UnixRestorer::read_queues(const ImageSet& images) {
  for (QueuedPacket& packet : read_queued_packets(images))
    queues_[packet.socket].push_back({.bytes = packet.bytes, .files = std::move(packet.files)});
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
    if (s.entry->type() == SOCK_DGRAM && clean_name(s.entry->name()) == address) return s.number;
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
      backstage([&] { bind_backstage(gone.number, entry); });
      gone.entry = &entry;
    }
    return gone.number;
  }
  const Socket* peer = by_inode(a.entry->peer());
  if (peer != nullptr && peer->entry->peer() == a.entry->ino()) return peer->number;
  if (a.entry->type() != SOCK_DGRAM) throw Corrupt(kSkQueuesImage, who_is(*a.entry) + " has data but no peer");
  if (!address.empty()) return named_sender(a, address, senders);
  if (!senders.unnamed) senders.unnamed = new_socket(*a.entry);
  return senders.unnamed.get();
}

void UnixRestorer::put_back(Socket& a, const Packet& packet, int sender, const std::map<uint32_t, int>& opened) {
  const std::string who = who_is(*a.entry);
  const UnixAddress* to = nullptr;
  std::optional<UnixAddress> address;
  const Socket* peer = by_inode(a.entry->peer());
  const bool pair = widows_.contains(a.entry->ino()) || (peer != nullptr && peer->number == sender);
  if (!pair) to = &address.emplace(reachable_name(*a.entry));
  std::vector<int> files;
  for (const uint32_t id : packet.files) {
    const auto file = opened.find(id);
    if (file == opened.end()) throw Corrupt(kSkQueuesImage, "a descriptor of a message has no file");
    files.push_back(file->second);
  }
  if (!files.empty() && a.entry->type() == SOCK_STREAM && (packet.bytes.empty() || packet.urgent != 0))
    throw Corrupt(kSkQueuesImage, "descriptors come with nothing");
  const auto send = [&](std::span<const std::byte> bytes, int flags) {
    const ssize_t n = send_from(sender, bytes, packet.from, files, to, flags);
    if (n < 0) throw Error("put data back into the queue of", who, errno);
    return static_cast<size_t>(n);
  };
  if (packet.urgent != 0) {
    if (a.entry->type() != SOCK_STREAM) throw Corrupt(kPacketSendersImage, "a message is urgent");
    std::byte byte = packet.urgent == kUrgent ? packet.bytes.front() : std::byte{};
    send(std::span(&byte, 1), MSG_OOB);
    if (packet.urgent == kUrgentTaken)
      check(::recv(a.number, &byte, 1, MSG_OOB | MSG_DONTWAIT), "take an urgent byte from", who);
    return;
  }
  auto rest = packet.bytes;
  do {
    rest = rest.subspan(send(rest, 0));
    files.clear();  // they come with the first byte
  } while (!rest.empty());
}

void UnixRestorer::fill_queue(Socket& a, const std::map<uint32_t, int>& opened) {
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
    put_back(a, packet, sender, opened);
  }
}

/// A peer that is closed with data unread resets its socket (unix_release_sock()).
void UnixRestorer::leave_unread() {
  for (const auto& [ino, gone] : widows_) {
    const Socket& a = sockets_.at(ino);
    const ext::SocketState* state = states_.find(a.entry->id());
    if (state == nullptr || !state->reset()) continue;
    check(::send(a.number, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT), "send something to the peer of", who_is(*a.entry));
  }
}

}  // namespace migrate
