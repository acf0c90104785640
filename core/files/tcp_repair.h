// TCP_REPAIR (tcp(7) does not have it; net/ipv4/tcp.c): the state of a connection is read and set directly, and no
// packet is sent for it. Needs CAP_NET_ADMIN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace migrate {

/// For as long as it lives. SO_REUSEADDR, which the end of it takes away, is put back.
class TcpRepair {
 public:
  enum class Queue { received = 1, sent = 2 };
  TcpRepair(int fd, const std::string& who);
  ~TcpRepair();
  TcpRepair(const TcpRepair&) = delete;
  TcpRepair& operator=(const TcpRepair&) = delete;

  /// The number of the next byte.
  uint32_t sequence(Queue queue);
  void set_sequence(Queue queue, uint32_t number);
  /// What was sent and is not acknowledged yet, or could not be sent: `bytes` of it.
  std::vector<std::byte> unacknowledged(size_t bytes);
  /// Options that both ends have agreed on. `agreed`: TCPI_OPT_*; scales are of the windows.
  void set_options(uint32_t agreed, uint32_t segment, uint32_t send_scale, uint32_t receive_scale);

 private:
  void choose(Queue queue);
  int fd_;
  std::string who_;
  int reuse_ = 0;
};

/// Where a connection may begin to count.
uint32_t random_sequence();

/// Puts it in repair mode, so that the last close tells nobody.
void end_silently(int fd) noexcept;

}  // namespace migrate
