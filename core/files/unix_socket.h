// Unix sockets, dump side: pairs, listening ones, datagram sockets, with what waits in their queues.
#pragma once

#include <sys/socket.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/files/open_file.h"
#include "core/files/option_table.h"
#include "core/files/unix_diag.h"
#include "core/files/unix_queue.h"
#include "images/sk-packet.pb.h"

namespace migrate {

/// unix_sk_entry.uflags: the peer of a datagram socket that is not part of the tree.
inline constexpr uint32_t kUnixExternal = 1;
// Socket states of the image format (include/net/tcp_states.h).
inline constexpr uint32_t kSocketEstablished = 1, kSocketClose = 7, kSocketListen = 10;

inline constexpr char kSkQueuesImage[] = "sk-queues.img";
/// Who sent what waits in queues, and which bytes are urgent: an image of our own (proto/ext/ext.proto, PacketSender).
inline constexpr char kPacketSendersImage[] = "migrate-senders.img";
inline constexpr uint32_t kPacketSendersMagic = 0x4d494753;

// Why a socket is not taken that is only for a moment as it is; `who` names it.
Refusal connections_not_accepted(const std::string& who, const UnixSocketInfo& listening);
Refusal not_accepted(const std::string& who);
/// The system's log: programs send to it and take nothing from it, and syslog(3) connects again when nobody is there.
/// Another host's serves as well.
/// What preflight and dump say of a socket that the list of its task's network namespace lacks.
Refusal of_another_namespace(const OpenFile& file);
bool leads_to_log(const std::string& name);
/// Whether its connection is not accepted yet.
bool waits_to_be_accepted(const UnixSocketInfo& info);

class UnixDumper {
 public:
  explicit UnixDumper(DumpContext& context) : context_(context) {}
  void dump(const OpenFile& file);
  /// Of those with descriptors in their queues, which may be sockets with more of them.
  void dump_queues();
  /// Checks that every peer is in the tree, and emits. Call when all descriptors were seen.
  void finish();

 private:
  struct Seen {
    img::file_entry entry;
    ext::SocketState state;
    std::string who;
    UnixSocketInfo info;
    uint64_t netns;
    pid_t holder;           ///< one that has it, as the tree numbers it
    std::string peer_name;  ///< of datagram sockets, as getpeername(2) tells it
  };
  const UnixSocketInfo& info_of(const OpenFile& file, uint64_t netns);
  void describe_name(const OpenFile& file, const UnixSocketInfo& info, img::unix_sk_entry& out,
                     ext::SocketState& state);
  struct Queue {
    uint32_t file_id;
    const UnixSocketInfo* info;
    int fd;
    const ProcDir* holder;
    std::string who;
    size_t descriptors;  ///< how many wait in it
    Fd kept{};           ///< what `fd` is, of one that is dumped later
  };
  /// Whether the socket is reset.
  bool dump_queue(const Queue& from);
  std::vector<img::sk_packet_entry> describe_packets(const Queue& from, std::vector<QueuedMessage>& messages);
  void describe_waiting(const Seen& listening);
  void check_peer(const Seen& seen);

  DumpContext& context_;
  std::map<uint64_t, std::map<uint32_t, UnixSocketInfo>> sockets_;  ///< by network namespace
  std::map<uint32_t, Seen> seen_;                                   ///< by socket inode
  std::map<uint32_t, uint32_t> external_;                           ///< peers outside: inode → file id
  std::vector<Queue> later_;                                        ///< with descriptors in them
};

}  // namespace migrate
