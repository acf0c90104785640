// Established TCP connections of a tree with itself, over the loopback device or an address of the host: both ends move
// along with what waits between them. A connection that leads out of the tree does not.
//
// Nothing of a connection is changed to look at it: what was received is peeked at. Only bytes that the receiver has no
// room for can be read in no other way than in repair mode (TCP_REPAIR), which is on for some microseconds then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/files/open_file.h"

namespace migrate {

class InetDumper;
class RunningTree;

// Socket states of the kernel (include/net/tcp_states.h); netinet/tcp.h has them, and not with linux/tcp.h.
enum class TcpState : uint32_t {
  established = 1,
  syn_sent,
  syn_received,
  fin_wait1,
  fin_wait2,
  time_wait,
  close,
  close_wait,
  last_ack,
  listen,
  closing,
};
/// Whether such a socket has both ends' agreement, or had it, and can be connected again.
bool is_connection(TcpState state);
/// Whether it has said that it sends no more.
bool has_sent_end(TcpState state);

/// "tcp-stream-1a2b.img": by the inode number of the socket.
std::string tcp_stream_name(uint32_t inode);

class TcpConnections {
 public:
  TcpConnections(DumpContext& context, InetDumper& sockets) : context_(context), sockets_(sockets) {}
  /// Keeps it if it is an end of a connection.
  bool take(const OpenFile& file);
  /// While the tree runs: throws Refusals for those that lead out of it.
  void demand_inside(const RunningTree& tree);
  /// Emits all, or throws Refusal; the tree stands still. With FileDumpOptions::tcp_close those that lead out of the
  /// tree are dropped.
  void dump();
  /// Their tree is dead: they end without a word to anybody, so that no port stays in use for a minute (TIME_WAIT).
  void close_silently() noexcept;

 private:
  struct End {
    OpenFile file;
    TcpState state;
    std::string here, there;  ///< addresses (InetAddress::key)
    End* peer = nullptr;
    std::vector<std::byte> received{}, unsent{};  ///< waits for its reader, and for the reader at the other end
    uint32_t sequence = 0;                        ///< of the next byte that it receives
    bool whole = false;                           ///< is dumped as a connection
  };
  struct Line {
    uint32_t state = 0;
    uint64_t inode = 0;
  };
  void pair();
  /// How the kernel's tables tell the other end, nullopt: there is none.
  std::optional<Line> other_end(const End& end);
  bool peer_is_gone(const End& end);
  void read_queues(End& end);
  void write_stream(const End& end);

  DumpContext& context_;
  InetDumper& sockets_;
  std::vector<std::unique_ptr<End>> ends_;
  std::optional<std::map<std::string, Line>> lines_;  ///< by address and peer's address
};

}  // namespace migrate
