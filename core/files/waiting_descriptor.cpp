#include "core/files/waiting_descriptor.h"

#include <sys/socket.h>

#include <map>
#include <set>

#include "core/files/socket_options.h"
#include "core/files/unix_socket.h"
#include "core/image/magic.h"
#include "images/sk-packet.pb.h"

namespace migrate {
namespace {

bool is_tcp_connection(const OpenFile& file) {
  return (file.domain == AF_INET || file.domain == AF_INET6) &&
         socket_option(file.ours.get(), SOL_SOCKET, SO_TYPE, file.who()) == SOCK_STREAM &&
         socket_option(file.ours.get(), SOL_SOCKET, SO_ACCEPTCONN, file.who()) == 0;
}

const char* what_needs_a_number(const OpenFile& file, img::fd_types type) {
  if (type == img::fd_types::EVENTPOLL) return "an epoll";
  if (type == img::fd_types::TTY) return "a terminal";
  if (is_tcp_connection(file)) return "a TCP socket that does not listen";
  if (fdinfo_field(file.info, "lock:")) return "a file with a lock";
  img::fown_entry owner;
  describe_owner(file, owner);
  if (owner.pid() != 0 || owner.signum() != 0 || (file.info.flags & O_ASYNC) != 0)
    return "a file that tells by signals when it is ready (F_SETOWN, F_SETSIG)";
  return nullptr;
}

}  // namespace

OpenFile waiting_file(const ProcDir& holder, Fd fd, const std::string& socket) {
  const std::string number = std::to_string(fd.get());
  OpenFile file;
  file.proc = &holder;
  file.waits_at = socket;
  file.info = parse_fdinfo(read_file_at(AT_FDCWD, "/proc/self/fdinfo/" + number, 64 << 20));
  file.link = read_link_at(AT_FDCWD, "/proc/self/fd/" + number);
  file.take(std::move(fd));
  return file;
}

void check_waiting_descriptor(const OpenFile& file, img::fd_types type) {
  if (const char* what = what_needs_a_number(file, type))
    throw Refusal(file.who() + ", " + what, "let the receiver take it first");
}

std::vector<QueuedPacket> read_queued_packets(const ImageSet& images) {
  std::vector<QueuedPacket> packets;
  auto reader = images.read(kSkQueuesImage, magic::kSkQueues);
  img::sk_packet_entry entry;
  while (reader && reader->next(entry)) {
    QueuedPacket& packet = packets.emplace_back(QueuedPacket{entry.id_for(), reader->raw(entry.length()), {}});
    for (const img::scm_entry& rights : entry.scm()) {
      const auto count = static_cast<size_t>(rights.rights_size());
      if (rights.type() != SCM_RIGHTS || entry.scm_size() != 1 || count > kMostInMessage)
        throw Corrupt(kSkQueuesImage, "a message has impossible descriptors");
      packet.files.assign(rights.rights().begin(), rights.rights().end());
    }
  }
  return packets;
}

void hand_on_to_waiting(const ImageSet& images, std::vector<uint32_t> sockets,
                        const std::function<bool(uint32_t socket, uint32_t file)>& hand_on) {
  std::map<uint32_t, std::set<uint32_t>> waiting;
  for (const QueuedPacket& packet : read_queued_packets(images))
    waiting[packet.socket].insert(packet.files.begin(), packet.files.end());
  std::erase_if(waiting, [](const auto& queue) { return queue.second.empty(); });
  while (!sockets.empty()) {
    const auto queue = waiting.find(sockets.back());
    sockets.pop_back();
    if (queue == waiting.end()) continue;
    for (const uint32_t file : queue->second)
      if (hand_on(queue->first, file)) sockets.push_back(file);
  }
}

}  // namespace migrate
