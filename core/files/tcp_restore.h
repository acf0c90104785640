// Connections of a tree with itself again: both ends are made in repair mode, without a packet, and then get what
// waited between them by sending it once more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/fd.h"
#include "core/image/image_set.h"
#include "images/sk-inet.pb.h"
#include "images/tcp-stream.pb.h"

namespace migrate {

class TcpPairs {
 public:
  explicit TcpPairs(const ImageSet& images) : images_(images) {}
  /// `made`: a socket with the options of `entry`, not bound. The entry must outlive this.
  void add(uint32_t id, const img::inet_sk_entry& entry, Fd made);
  /// Whether its other end is in the images, or was closed: else it leads out of the tree.
  bool has_peer(uint32_t id) const;
  /// Takes one out again.
  Fd remove(uint32_t id);
  /// Makes all connections; by file id.
  std::map<uint32_t, Fd> connect();

 private:
  struct End {
    const img::inet_sk_entry* entry;
    Fd fd;
    std::string here, there;  ///< InetAddress::key
    img::tcp_stream_entry stream{};
    std::span<const std::byte> received{}, unsent{};
    bool done = false;
  };
  End* peer_of(const End& end) const;
  void read_stream(End& end);
  void connect(End& one, End& other);
  End closed_peer(const End& end);

  const ImageSet& images_;
  std::map<uint32_t, End> ends_;
  std::map<std::pair<std::string, std::string>, End*> by_addresses_;
};

}  // namespace migrate
