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
  /// Of a tree that stands still: keeps it if it is an end of a connection.
  bool take(const OpenFile& file);
  /// Emits all, or throws Refusal. With FileDumpOptions::tcp_close those that lead out of the tree are dropped.
  void dump();
  /// Their tree is dead: they end without a word to anybody, so that no port stays in use for a minute (TIME_WAIT).
  void close_silently() noexcept;

  /// Of a running tree, whose sockets are not held: a close of the program's must be one. Refusal for what dump() would
  /// not take of one inside the tree.
  bool look(const OpenFile& file);
  /// Throws Refusals for those that lead out of the tree, or still do after a moment.
  void demand_inside(const RunningTree& tree);

 private:
  struct End {
    OpenFile file;  ///< without `ours` while the tree runs
    TcpState state;
    std::string here, there;  ///< addresses (InetAddress::key)
    bool loopback;            ///< the other end's
    End* peer = nullptr;
    std::vector<std::byte> received{}, unsent{};  ///< waits for its reader, and for the reader at the other end
    uint32_t sequence = 0;                        ///< of the next byte that it receives
    bool whole = false;                           ///< is dumped as a connection
  };
  struct Line {
    uint32_t state = 0;
    uint64_t inode = 0;
    uint32_t received = 0;
  };
  End* add(const OpenFile& file, bool hold);
  void pair();
  const std::map<std::string, Line>& lines(const ProcDir& task);
  /// How the kernel's tables tell the other end; nullopt: there is none.
  std::optional<Line> other_end(const End& end);
  bool peer_is_gone(const End& end);
  bool still_the_same(End& end);
  void read_queues(End& end);
  void write_stream(const End& end);

  DumpContext& context_;
  InetDumper& sockets_;
  std::vector<std::unique_ptr<End>> ends_;
  std::optional<std::map<std::string, Line>> lines_;  ///< by address and peer's address
};

}  // namespace migrate
