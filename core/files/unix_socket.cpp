#include "core/files/unix_socket.h"

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/files/file_owners.h"
#include "core/files/socket_options.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/sk-packet.pb.h"

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE (0x89E0 + 0)
#endif

namespace migrate {
namespace {

/// For people: abstract names with '@'.
std::string printable(std::string name) {
  if (name.empty()) return "an unnamed one";
  if (name.front() == '\0') name.front() = '@';
  return name.substr(0, name.find('\0'));
}

/// Peeks through a queue packet by packet: SO_PEEK_OFF moves on with each peek (socket(7)), and is put back.
class PeekOffset {
 public:
  PeekOffset(int fd, const std::string& who) : fd_(fd), before_(socket_option(fd, SOL_SOCKET, SO_PEEK_OFF, who)) {
    set_socket_option(fd, SOL_SOCKET, SO_PEEK_OFF, 0, who);
  }
  ~PeekOffset() { ::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &before_, sizeof before_); }
  PeekOffset(const PeekOffset&) = delete;
  PeekOffset& operator=(const PeekOffset&) = delete;

 private:
  int fd_;
  int before_;
};

/// `from`: who sent it, which is told where SO_PASSCRED is set. Descriptors (SCM_RIGHTS) must not be there.
ssize_t peek_message(int fd, std::span<std::byte> buffer, int flags, std::optional<ucred>& from) {
  from.reset();
  iovec iov{buffer.data(), buffer.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t n = ::recvmsg(fd, &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC | flags);
  if (n < 0) return n;
  for (const cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, const_cast<cmsghdr*>(c))) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS) continue;
    ucred told;
    std::memcpy(&told, CMSG_DATA(c), sizeof told);
    // Without a pid nobody is known.
    if (told.pid != 0) from = told;
  }
  return n;
}

}  // namespace

Refusal descriptors_on_their_way(const std::string& who, const std::string& count) {
  return {who + ", a Unix socket with " + count + " descriptors on their way (SCM_RIGHTS)",
          "let the receiver take them first"};
}

Refusal connections_not_accepted(const std::string& who, const UnixSocketInfo& listening) {
  return {who + ", the listening Unix socket " + printable(listening.name) + " with " +
              std::to_string(listening.waiting.size()) + " connections not accepted yet",
          "try again when they are accepted"};
}

Refusal not_accepted(const std::string& who) {
  return {who + ", a Unix socket whose connection is not accepted yet", "try again when it is accepted"};
}

/// Both the end of a connection that nobody accepted yet and one whose other end was closed have a peer without inode;
/// closing shuts down both directions.
bool waits_to_be_accepted(const UnixSocketInfo& info) {
  return info.peer == 0 && info.type != SOCK_DGRAM && info.state == kSocketEstablished && info.shutdown != 3;
}

const UnixSocketInfo& UnixDumper::info_of(const OpenFile& file, uint64_t netns) {
  auto [it, fresh] = sockets_.try_emplace(netns);
  if (fresh) it->second = list_unix_sockets(file.proc);
  const auto found = it->second.find(static_cast<uint32_t>(file.st.stx_ino));
  if (found == it->second.end())
    throw Refusal(file.who() + ", a Unix socket of another network namespace than its task's", "close it first");
  return found->second;
}

void UnixDumper::dump(const OpenFile& file) {
  const uint64_t netns = stat_cached(file.proc->fd(), "ns/net", 0, "a network namespace").stx_ino;
  const UnixSocketInfo& info = info_of(file, netns);
  img::file_entry entry = entry_of(img::fd_types::UNIXSK, file.id);
  img::unix_sk_entry& e = *entry.mutable_usk();
  describe_common(file, e);
  e.set_ino(info.ino);
  e.set_type(info.type);
  e.set_state(info.state);
  e.set_uflags(0);
  e.set_backlog(info.backlog);
  e.set_peer(info.peer);
  e.set_name(info.name);
  if (info.shutdown != 0) e.set_shutdown(static_cast<img::sk_shutdown>(info.shutdown & 3));
  describe_socket_options(file.ours.get(), file.who(), *e.mutable_opts());
  describe_name(file, info, e);
  if (const auto fds = fdinfo_field(file.info, "scm_fds:"); fds && *fds != "0")
    throw descriptors_on_their_way(file.who(), std::string(*fds));
  if (!info.waiting.empty()) throw connections_not_accepted(file.who(), info);
  if (info.state != kSocketListen) dump_queue(file, info);
  std::optional<PeerCredentials> peer = peer_credentials(file.ours.get(), file.who());
  if (peer) peer->pid = static_cast<uint32_t>(context_.pid_in_tree(static_cast<pid_t>(peer->pid)));
  record_owner(context_, file, peer);
  seen_.emplace(info.ino, Seen{std::move(entry), file.who(), info, netns});
}

void UnixDumper::describe_name(const OpenFile& file, const UnixSocketInfo& info, img::unix_sk_entry& out) {
  if (info.name.empty() || info.name.front() == '\0') return;
  // Only the one that is bound: accepted sockets merely share the name.
  const bool owner = info.state == kSocketListen || info.type == SOCK_DGRAM || info.state == kSocketClose;
  if (!owner) return;
  const Fd path(check(::ioctl(file.ours.get(), SIOCUNIXFILE), "open the file of Unix socket", printable(info.name)));
  const struct statx st = stat_cached(path.get(), "", AT_EMPTY_PATH, printable(info.name));
  out.mutable_file_perms()->set_mode(st.stx_mode & 07777);
  out.mutable_file_perms()->set_uid(st.stx_uid);
  out.mutable_file_perms()->set_gid(st.stx_gid);
  if (st.stx_nlink == 0) out.set_deleted(true);
  if (info.name.front() == '/') return;
  // A relative name: the folder it was bound in.
  std::string full = read_link_at(AT_FDCWD, fd_link(path.get()));
  if (full.ends_with(" (deleted)") && st.stx_nlink == 0) full.resize(full.size() - 10);
  const std::string name = printable(info.name);
  if (!full.ends_with("/" + name))
    throw Refusal(file.who() + ", the Unix socket " + name + ", which was moved since it was bound",
                  "restart it with an absolute path");
  out.set_name_dir(full.size() == name.size() + 1 ? "/" : full.substr(0, full.size() - name.size() - 1));
}

void UnixDumper::dump_packet(const OpenFile& file, std::span<const std::byte> data, const std::optional<ucred>& from) {
  img::sk_packet_entry packet;
  packet.set_id_for(file.id);
  packet.set_length(static_cast<uint32_t>(data.size()));
  ImageWriter out = context_.images.write("sk-queues.img", magic::kSkQueues);
  out.entry(packet);
  out.raw(data);
  const uint32_t number = packets_[file.id]++;
  if (!from) return;
  ext::PacketSender sender;
  sender.set_id_for(file.id);
  sender.set_packet(number);
  sender.set_pid(static_cast<uint32_t>(context_.pid_in_tree(from->pid)));
  sender.set_uid(from->uid);
  sender.set_gid(from->gid);
  context_.images.write(kPacketSendersImage, kPacketSendersMagic).entry(sender);
}

void UnixDumper::dump_queue(const OpenFile& file, const UnixSocketInfo& info) {
  const int fd = file.ours.get();
  std::vector<std::byte> buffer(64 << 10);
  std::optional<ucred> from;
  const auto peek = [&](int extra) { return peek_message(fd, buffer, extra, from); };
  int queued = 0;
  if (info.type == SOCK_STREAM) {
    if (::ioctl(fd, FIONREAD, &queued) != 0 || queued <= 0) return;
    buffer.resize(static_cast<size_t>(queued));
    // One peek gives the whole queue, unless credentials of several senders must be told apart.
    const ssize_t n = peek(0);
    if (n == queued) return dump_packet(file, buffer, from);
  } else if (peek(MSG_TRUNC) < 0) {
    return;
  }
  const PeekOffset offset(fd, file.who());
  for (;;) {
    const ssize_t n = peek(MSG_TRUNC);
    if (n < 0) return;
    if (n == 0 && info.type != SOCK_DGRAM) return;  // end of file
    const auto length = static_cast<size_t>(n);
    if (length > buffer.size())
      throw Refusal(file.who() + ", a Unix socket with a message of " + std::to_string(n) + " bytes in its queue",
                    "let it be read first");
    dump_packet(file, std::span(buffer).first(length), from);
    // An empty datagram: a peek would give it for ever, since the offset stands still.
    if (n == 0) return;
  }
}

void UnixDumper::check_peer(const Seen& seen) {
  const uint32_t peer = seen.info.peer;
  if (waits_to_be_accepted(seen.info)) throw not_accepted(seen.who);
  if (peer == 0 || seen_.contains(peer)) return;
  const auto& all = sockets_.at(seen.netns);
  const auto it = all.find(peer);
  const std::string name = it == all.end() ? "" : it->second.name;
  if (context_.options.ext_unix_sk && seen.info.type == SOCK_DGRAM && !name.empty()) {
    const auto [known, fresh] = external_.try_emplace(peer, 0);
    if (!fresh) return;
    known->second = context_.new_id();
    img::file_entry entry = entry_of(img::fd_types::UNIXSK, known->second);
    img::unix_sk_entry& e = *entry.mutable_usk();
    e.CopyFrom(seen.entry.usk());
    e.set_id(known->second);
    e.set_ino(peer);
    e.set_state(kSocketClose);
    e.set_uflags(kUnixExternal);
    e.set_peer(0);
    e.set_name(name);
    e.clear_file_perms();
    e.clear_name_dir();
    return context_.emit(entry);
  }
  const bool datagram = seen.info.type == SOCK_DGRAM && !name.empty();
  // An accepted peer shares the name of its listener; a client has none, and our own name says more.
  const std::string to = !name.empty() ? printable(name) : printable(seen.info.name);
  throw Refusal(seen.who + ", a Unix socket connected to a process outside of the tree (" + to + ")",
                datagram && context_.options.advise_options
                    ? "close it first, or use --ext-unix-sk to connect it again by name"
                    : "close it first");
}

void UnixDumper::finish() {
  for (const auto& [ino, seen] : seen_) check_peer(seen);
  for (const auto& [ino, seen] : seen_) context_.emit(seen.entry);
}

}  // namespace migrate
