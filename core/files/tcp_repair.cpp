#include "core/files/tcp_repair.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "core/base/error.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

constexpr int kRepair = 1, kNoRepair = 0;
// Kinds of TCP options (RFC 9293, RFC 7323, RFC 2018).
constexpr uint32_t kSegment = 2, kScale = 3, kSelective = 4, kTimestamps = 8;

}  // namespace

TcpRepair::TcpRepair(int fd, const std::string& who)
    : fd_(fd), who_(who), reuse_(socket_option(fd, SOL_SOCKET, SO_REUSEADDR, who)) {
  set_socket_option(fd_, IPPROTO_TCP, TCP_REPAIR, kRepair, who_);
}

TcpRepair::~TcpRepair() {
  // The end of it asks the peer for its window.
  ::setsockopt(fd_, IPPROTO_TCP, TCP_REPAIR, &kNoRepair, sizeof kNoRepair);
  ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &reuse_, sizeof reuse_);
}

void TcpRepair::choose(Queue queue) {
  set_socket_option(fd_, IPPROTO_TCP, TCP_REPAIR_QUEUE, static_cast<int>(queue), who_);
}

uint32_t TcpRepair::sequence(Queue queue) {
  choose(queue);
  return static_cast<uint32_t>(socket_option(fd_, IPPROTO_TCP, TCP_QUEUE_SEQ, who_));
}

void TcpRepair::set_sequence(Queue queue, uint32_t number) {
  choose(queue);
  set_socket_option(fd_, IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(number), who_);
}

std::vector<std::byte> TcpRepair::unacknowledged(size_t bytes) {
  choose(Queue::sent);
  std::vector<std::byte> data(bytes);
  const ssize_t n = ::recv(fd_, data.data(), data.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 || static_cast<size_t>(n) > bytes)
    throw Error("read what waits to be sent of socket:", who_, n < 0 ? errno : EIO);
  data.resize(static_cast<size_t>(n));
  return data;
}

void TcpRepair::set_options(uint32_t agreed, uint32_t segment, uint32_t send_scale, uint32_t receive_scale) {
  std::vector<tcp_repair_opt> options{{kSegment, segment}};
  if ((agreed & TCPI_OPT_WSCALE) != 0) options.push_back({kScale, send_scale | receive_scale << 16});
  if ((agreed & TCPI_OPT_SACK) != 0) options.push_back({kSelective, 0});
  if ((agreed & TCPI_OPT_TIMESTAMPS) != 0) options.push_back({kTimestamps, 0});
  check(::setsockopt(fd_, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                     static_cast<socklen_t>(options.size() * sizeof(tcp_repair_opt))),
        "set the options of the connection of", who_);
}

uint32_t random_sequence() {
  uint32_t number = 0;
  check(::getrandom(&number, sizeof number, 0), "draw", "a sequence number");
  return number;
}

void end_silently(int fd) noexcept { ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &kRepair, sizeof kRepair); }

}  // namespace migrate
