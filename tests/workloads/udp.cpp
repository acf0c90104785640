// UDP sockets: bound, connected, with options. (What is queued may be lost, as on any network.)
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>

#include "workload.h"

using namespace workload;

namespace {

sockaddr_in loopback(uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons(port);
  return a;
}

int bound() {
  const int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
  const sockaddr_in a = loopback(0);
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind");
  return fd;
}

sockaddr_in name_of(int fd) {
  sockaddr_in a{};
  socklen_t n = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
  return a;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int server = bound(), client = bound();
        const int on = 1, ttl = 9;
        must(setsockopt(server, SOL_SOCKET, SO_BROADCAST, &on, sizeof on), "SO_BROADCAST");
        must(setsockopt(server, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl), "IP_TTL");
        const sockaddr_in where = name_of(server), mine = name_of(client);
        must(connect(client, reinterpret_cast<const sockaddr*>(&where), sizeof where), "connect");
        w.serve([&] {
          expect_equal(name_of(server).sin_port, where.sin_port, "server's port");
          expect_equal(name_of(client).sin_port, mine.sin_port, "client's port");
          sockaddr_in peer{};
          socklen_t n = sizeof peer;
          must(getpeername(client, reinterpret_cast<sockaddr*>(&peer), &n), "getpeername");
          expect_equal(peer.sin_port, where.sin_port, "peer's port");
          int value = 0;
          n = sizeof value;
          must(getsockopt(server, SOL_SOCKET, SO_BROADCAST, &value, &n), "SO_BROADCAST");
          expect_equal(value, 1, "SO_BROADCAST");
          must(getsockopt(server, IPPROTO_IP, IP_TTL, &value, &n), "IP_TTL");
          expect_equal(value, 9, "IP_TTL");
          char text[16] = {};
          must(send(client, "hello", 5, 0), "send");
          await([&] { return recv(server, text, sizeof text, MSG_DONTWAIT) == 5; }, "a datagram", 5000);
          expect(std::memcmp(text, "hello", 5) == 0, "datagram differs");
        });
      },
      argv[0]);
}
