// Sockets that are shut down in one direction, TCP connections that have ended, and filters that are locked.
#include <linux/filter.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>

#include "workload.h"

using namespace workload;

namespace {

sockaddr_in loopback() {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

int bound(int type) {
  const int fd = must(socket(AF_INET, type | SOCK_CLOEXEC, 0), "socket");
  const sockaddr_in a = loopback();
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind");
  return fd;
}

sockaddr_in name_of(int fd) {
  sockaddr_in a{};
  socklen_t n = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
  return a;
}

int udp(int how) {
  const int fd = bound(SOCK_DGRAM);
  const sockaddr_in a = name_of(fd);
  must(connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "connect");
  must(shutdown(fd, how), "shutdown");
  return fd;
}

void verify_udp(int fd, bool reads, bool writes, const std::string& what) {
  char c = 0;
  const ssize_t sent = send(fd, "x", 1, MSG_NOSIGNAL);
  expect(writes ? sent == 1 : sent == -1 && errno == EPIPE, what + (writes ? ": cannot send" : ": can send"));
  if (reads && writes) await([&] { return recv(fd, &c, 1, MSG_DONTWAIT) == 1; }, "a datagram", 5000);
  pollfd p{fd, POLLRDHUP, 0};
  poll(&p, 1, 0);
  expect_equal((p.revents & POLLRDHUP) == 0, reads, what + ": can be read");
  if (!reads)
    while (recv(fd, &c, 1, MSG_DONTWAIT) > 0) {
    }
}

/// Its peer is gone: by an end of data that was read, or by a reset nobody was told of.
int ended(bool reset) {
  const int listener = bound(SOCK_STREAM);
  must(listen(listener, 1), "listen");
  const sockaddr_in a = name_of(listener);
  const int client = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  must(connect(client, reinterpret_cast<const sockaddr*>(&a), sizeof a), "connect");
  const int server = must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept");
  close(listener);
  const linger now{1, 0};
  if (reset) setsockopt(server, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(server);
  char c;
  if (!reset) {
    expect_equal(recv(client, &c, 1, 0), 0, "the end of data");
    // Answered by a reset, which closes it.
    must(send(client, "x", 1, MSG_NOSIGNAL), "send");
    await([&] { return send(client, "x", 1, MSG_NOSIGNAL) == -1; }, "the end of a connection", 5000);
  }
  pollfd p{client, POLLHUP, 0};
  await([&] { return poll(&p, 1, 0) == 1 && (p.revents & POLLHUP) != 0; }, "the end of a connection", 5000);
  return client;
}

int filtered() {
  const int fd = bound(SOCK_DGRAM);
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0), BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 20, 1, 0),
                        BPF_STMT(BPF_RET | BPF_K, 65535), BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program{4, code};
  const int on = 1;
  must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), "SO_ATTACH_FILTER");
  must(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on), "SO_LOCK_FILTER");
  return fd;
}

void verify_filter(int fd) {
  const sockaddr_in a = name_of(fd);
  const auto send_size = [&](size_t size) {
    const std::string text(size, 'x');
    must(sendto(fd, text.data(), size, 0, reinterpret_cast<const sockaddr*>(&a), sizeof a), "sendto");
  };
  send_size(100);
  send_size(5);
  char text[200];
  ssize_t got = 0;
  await([&] { return (got = recv(fd, text, sizeof text, MSG_DONTWAIT)) > 0; }, "a short datagram", 5000);
  expect_equal(got, 5, "what passes the filter");
  const int off = 0;
  expect(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &off, sizeof off) == -1 && errno == EPERM,
         "the filter is not locked");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int mute = udp(SHUT_WR), deaf = udp(SHUT_RD), both = udp(SHUT_RDWR), over = ended(false);
        int reset = ended(true);
        const int filter = filtered();
        w.serve([&] {
          verify_udp(mute, true, false, "without a way out");
          verify_udp(deaf, false, true, "without a way in");
          verify_udp(both, false, false, "without any way");
          char c;
          expect_equal(recv(over, &c, 1, 0), 0, "an ended connection");
          expect(send(over, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "an ended connection takes data");
          expect(recv(reset, &c, 1, 0) == -1 && errno == ECONNRESET, "a reset is not told");
          expect_equal(recv(reset, &c, 1, 0), 0, "a connection that was reset");
          close(reset);
          reset = ended(true);
          verify_filter(filter);
        });
      },
      argv[0]);
}
