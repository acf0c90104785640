// A TCP connection to 127.0.0.1:NUMBER, where somebody sends back what comes. When DIR holds `moved`, the connection is
// one that was reset. (tests/migration/tcp_close.py)
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>

#include "workload.h"

using namespace workload;

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        sockaddr_in a{};
        a.sin_family = AF_INET;
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        a.sin_port = htons(static_cast<uint16_t>(w.number(0, 0)));
        const int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        must(connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "connect");
        bool told = false;
        w.serve([&] {
          char c = 'x';
          if (access(w.path("moved").c_str(), F_OK) == -1) {
            must(send(fd, &c, 1, MSG_NOSIGNAL), "send");
            expect(recv(fd, &c, 1, 0) == 1, "no answer");
            return;
          }
          pollfd p{fd, POLLIN | POLLRDHUP, 0};
          expect(poll(&p, 1, 0) == 1 && (p.revents & POLLHUP) != 0, "nobody is told that it has ended");
          if (!told) expect(recv(fd, &c, 1, 0) == -1 && errno == ECONNRESET, "no ECONNRESET");
          told = true;
          expect_equal(recv(fd, &c, 1, 0), 0, "the end of data");
          expect(send(fd, &c, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "it takes data");
        });
      },
      argv[0]);
}
