#include "core/files/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/files/file_owners.h"
#include "core/files/socket_options.h"
#include "core/files/unix_file.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"

namespace migrate {

Refusal connections_not_accepted(const std::string& who, const UnixSocketInfo& listening) {
  return {who + ", the listening Unix socket " + printable_name(listening.name) + " with " +
              std::to_string(listening.waiting.size()) + " connections not accepted yet",
          "try again when they are accepted"};
}

Refusal not_accepted(const std::string& who) {
  return {who + ", a Unix socket whose connection is not accepted yet", "try again when it is accepted"};
}

bool leads_to_log(const std::string& name) {
  constexpr std::array<std::string_view, 3> kLogs{"/dev/log", "/run/systemd/journal/dev-log",
                                                  "/run/systemd/journal/syslog"};
  return std::ranges::find(kLogs, std::string_view(name.c_str())) != kLogs.end();
}

namespace {

/// A file's socket may be of another network namespace, whose list is not ours.
std::string peer_name(const OpenFile& file) {
  sockaddr_un to{};
  socklen_t length = sizeof to;
  constexpr size_t kPath = offsetof(sockaddr_un, sun_path);
  if (::getpeername(file.ours.get(), reinterpret_cast<sockaddr*>(&to), &length) != 0 || length <= kPath) return {};
  return {to.sun_path, std::min<size_t>(length - kPath, sizeof to.sun_path)};
}

}  // namespace

/// Both the end of a connection that nobody accepted yet and one whose other end was closed have a peer without inode;
/// closing shuts down both directions.
bool waits_to_be_accepted(const UnixSocketInfo& info) {
  return info.peer == 0 && info.type != SOCK_DGRAM && info.state == kSocketEstablished && info.shutdown != 3;
}

Refusal of_another_namespace(const OpenFile& file) {
  return {file.who() +
              ", a Unix socket of another network namespace than its task's: most likely a connection from there " +
              "(from a container, say)",
          "have its other end closed first"};
}

const UnixSocketInfo& UnixDumper::info_of(const OpenFile& file, uint64_t netns) {
  auto [it, fresh] = sockets_.try_emplace(netns);
  if (fresh) it->second = list_unix_sockets(file.proc);
  const auto found = it->second.find(static_cast<uint32_t>(file.st.stx_ino));
  if (found == it->second.end()) throw of_another_namespace(file);
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
  ext::SocketState state;
  state.set_id_for(file.id);
  describe_options(file.ours.get(), file.who(), state);
  describe_name(file, info, e, state);
  if (info.state != kSocketListen) {
    const bool told = fdinfo_field(file.info, "scm_fds:").has_value();  // Linux 5.6
    Queue queue{file.id,   &info,      file.ours.get(),
                file.proc, file.who(), told ? fdinfo_number(file.info, "scm_fds:", 10) : 0};
    if (queue.descriptors != 0) {
      queue.fd = (queue.kept = file.ours.dup()).get();
      later_.push_back(std::move(queue));
    } else if (dump_queue(queue)) {
      state.set_reset(true);
    }
  }
  std::optional<PeerCredentials> peer = peer_credentials(file.ours.get(), file.who());
  if (peer) peer->pid = static_cast<uint32_t>(context_.pid_in_tree(static_cast<pid_t>(peer->pid)));
  record_owner(context_, file, peer);
  const pid_t holder = context_.pid_in_tree(file.proc->pid());
  seen_.emplace(info.ino, Seen{std::move(entry), std::move(state), file.who(), info, netns, holder,
                               info.type == SOCK_DGRAM ? peer_name(file) : ""});
}

void UnixDumper::describe_name(const OpenFile& file, const UnixSocketInfo& info, img::unix_sk_entry& out,
                               ext::SocketState& state) {
  if (!has_unix_file(info)) return;
  const UnixFile found = find_unix_file(file, info);
  out.mutable_file_perms()->set_mode(found.st.stx_mode & 07777);
  out.mutable_file_perms()->set_uid(found.st.stx_uid);
  out.mutable_file_perms()->set_gid(found.st.stx_gid);
  if (found.deleted) out.set_deleted(true);
  if (!found.folder.empty()) out.set_name_dir(found.folder);
  if (!found.moved.empty()) state.set_file(found.moved);
}

void UnixDumper::dump_queues() {
  while (!later_.empty()) {
    const Queue queue = std::move(later_.back());
    later_.pop_back();
    if (dump_queue(queue)) seen_.at(queue.info->ino).state.set_reset(true);
  }
}

/// Their descriptors are described meanwhile, and with them maybe sockets.
std::vector<img::sk_packet_entry> UnixDumper::describe_packets(const Queue& from,
                                                               std::vector<QueuedMessage>& messages) {
  std::vector<img::sk_packet_entry> packets;
  for (QueuedMessage& message : messages) {
    img::sk_packet_entry& packet = packets.emplace_back();
    packet.set_id_for(from.file_id);
    packet.set_length(static_cast<uint32_t>(message.bytes.size()));
    if (message.descriptors.empty()) continue;
    img::scm_entry& rights = *packet.add_scm();
    rights.set_type(SCM_RIGHTS);
    for (Fd& fd : message.descriptors)
      rights.add_rights(context_.describe_waiting(*from.holder, std::move(fd), from.who));
  }
  return packets;
}

bool UnixDumper::dump_queue(const Queue& from) {
  uint32_t number = 0;
  UnixQueue queue = read_unix_queue(from.fd, from.info->type, from.descriptors, from.who);
  const std::vector<img::sk_packet_entry> packets = describe_packets(from, queue.messages);
  for (const QueuedMessage& message : queue.messages) {
    ImageWriter out = context_.images.write(kSkQueuesImage, magic::kSkQueues);
    out.entry(packets[number]);
    out.raw(message.bytes);
    ext::PacketSender sender;
    sender.set_id_for(from.file_id);
    sender.set_packet(number++);
    if (message.from) {
      sender.set_pid(static_cast<uint32_t>(context_.pid_in_tree(message.from->pid)));
      sender.set_uid(message.from->uid);
      sender.set_gid(message.from->gid);
    }
    if (!message.address.empty()) sender.set_address(message.address);
    if (message.urgent != 0) sender.set_urgent(message.urgent);
    if (message.from || !message.address.empty() || message.urgent != 0)
      context_.images.write(kPacketSendersImage, kPacketSendersMagic).entry(sender);
  }
  return queue.reset;
}

/// Nobody can look into the other end of a connection before it is accepted: what is on its way cannot be read.
void UnixDumper::describe_waiting(const Seen& listening) {
  uint32_t place = 0;
  for (const uint32_t ino : listening.info.waiting) {
    const auto client = seen_.find(ino);
    if (client == seen_.end() || client->second.info.unread != 0)
      throw connections_not_accepted(listening.who, listening.info);
    client->second.entry.mutable_usk()->set_peer(listening.info.ino);
    client->second.state.set_waits(++place);
    client->second.state.set_connector(static_cast<uint32_t>(client->second.holder));
  }
}

void UnixDumper::check_peer(const Seen& seen) {
  const uint32_t peer = seen.info.peer;
  if (waits_to_be_accepted(seen.info) && !seen.state.has_waits()) throw not_accepted(seen.who);
  if (peer == 0 || seen_.contains(peer)) return;
  const auto& all = sockets_.at(seen.netns);
  const auto it = all.find(peer);
  const std::string name = it == all.end() ? seen.peer_name : it->second.name;
  if (seen.info.type == SOCK_DGRAM && !name.empty() && (context_.options.ext_unix_sk || leads_to_log(name))) {
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
  const std::string to = !name.empty() ? printable_name(name) : printable_name(seen.info.name);
  throw Refusal(seen.who + ", a Unix socket connected to a process outside of the tree (" + to + ")",
                datagram && context_.options.advice != Advice::none
                    ? "close it first, or use --ext-unix-sk to connect it again by name"
                    : "close it first");
}

void UnixDumper::finish() {
  for (const auto& [ino, seen] : seen_) describe_waiting(seen);
  for (const auto& [ino, seen] : seen_) check_peer(seen);
  for (const auto& [ino, seen] : seen_) context_.emit(seen.entry);
  for (const auto& [ino, seen] : seen_) context_.images.write(kSocketsImage, kSocketsMagic).entry(seen.state);
}

}  // namespace migrate
