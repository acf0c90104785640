// Unix sockets: pairs with queued data of all types, half-closed, listening by path and abstract name, connected inside
// the tree with data in flight, options.
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <csignal>
#include <cstddef>
#include <string>
#include <vector>

#include "unix_names.h"
#include "workload.h"

using namespace workload;

namespace {

struct Pair {
  int a = -1, b = -1;
};

Pair make_pair_of(int type) {
  int p[2];
  must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, p), "socketpair");
  return {p[0], p[1]};
}

void put(int fd, size_t n, uint64_t salt) {
  std::vector<uint8_t> data(n);
  fill_pattern(data.data(), n, salt);
  expect(send(fd, data.data(), n, MSG_NOSIGNAL) == static_cast<ssize_t>(n),
         std::string("send: ") + std::strerror(errno));
}

void take(int fd, size_t n, uint64_t salt, bool whole, const std::string& what) {
  std::vector<uint8_t> data(n + 100);
  size_t got = 0;
  do {
    const ssize_t r = recv(fd, data.data() + got, whole ? data.size() : n - got, MSG_DONTWAIT);
    if (r <= 0)
      throw std::runtime_error(what + " has only " + std::to_string(got) + " bytes queued: " + std::strerror(errno));
    got += static_cast<size_t>(r);
  } while (!whole && got < n);
  expect_equal(got, n, what + ": length");
  expect_pattern(data.data(), n, salt, what);
}

int listen_on(const std::string& name, int type) {
  const int fd = bound(name, type);
  must(listen(fd, 7), "listen");
  return fd;
}

int connect_to(const std::string& name, int type) {
  socklen_t n = 0;
  const sockaddr_un a = address(name, n);
  const int fd = must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket");
  must(connect(fd, reinterpret_cast<const sockaddr*>(&a), n), "connect");
  return fd;
}

void verify_listening(int listener, const std::string& name, int type) {
  const int client = connect_to(name, type);
  const int server = must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept");
  put(client, 50, 9);
  take(server, 50, 9, true, "a new connection");
  close(client);
  close(server);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const Pair stream = make_pair_of(SOCK_STREAM), datagrams = make_pair_of(SOCK_DGRAM),
                   packets = make_pair_of(SOCK_SEQPACKET), half = make_pair_of(SOCK_STREAM),
                   lone = make_pair_of(SOCK_STREAM);
        const auto fill = [&] {
          put(stream.a, 20'000, 1);
          put(stream.b, 77, 2);
          for (size_t n : {30, 300}) put(datagrams.a, n, n), put(packets.a, n, n + 1);
        };
        fill();
        const int room = 100'000, on = 1;
        must(setsockopt(stream.a, SOL_SOCKET, SO_SNDBUF, &room, sizeof room), "SO_SNDBUF");
        must(setsockopt(stream.b, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "SO_PASSCRED");
        int room_now = 0;
        socklen_t length = sizeof room_now;
        must(getsockopt(stream.a, SOL_SOCKET, SO_SNDBUF, &room_now, &length), "SO_SNDBUF");
        must(shutdown(half.a, SHUT_WR), "shutdown");
        put(lone.a, 64, 4);
        close(lone.a);
        const std::string path = w.path("socket"),
                          abstract = std::string(1, '\0') + "workload" + std::to_string(getpid());
        unlink(path.c_str());
        const int listener = listen_on(path, SOCK_STREAM), abstract_listener = listen_on(abstract, SOCK_SEQPACKET);
        const int client = connect_to(path, SOCK_STREAM);
        const int server = must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept");
        put(client, 500, 5);
        // A child echoes on one end of a pair.
        const Pair echo = make_pair_of(SOCK_STREAM);
        if (must(fork(), "fork") == 0) {
          close(echo.a);
          char c = 0;
          while (read(echo.b, &c, 1) == 1)
            if (write(echo.b, &c, 1) != 1) break;
          _exit(0);
        }
        close(echo.b);
        bool lone_drained = false;
        w.serve([&] {
          take(stream.b, 20'000, 1, false, "stream pair");
          take(stream.a, 77, 2, false, "stream pair, other way");
          for (size_t n : {30, 300}) {
            take(datagrams.b, n, n, true, "datagram pair");
            take(packets.b, n, n + 1, true, "seqpacket pair");
          }
          fill();
          int value = 0;
          length = sizeof value;
          must(getsockopt(stream.a, SOL_SOCKET, SO_SNDBUF, &value, &length), "SO_SNDBUF");
          expect_equal(value, room_now, "SO_SNDBUF");
          must(getsockopt(stream.b, SOL_SOCKET, SO_PASSCRED, &value, &length), "SO_PASSCRED");
          expect_equal(value, 1, "SO_PASSCRED");
          char c = 'q';
          expect(recv(half.b, &c, 1, MSG_DONTWAIT) == 0, "a half-closed pair has no end of file");
          expect(send(half.a, &c, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "a half-closed pair can be written");
          put(half.b, 10, 6);
          take(half.a, 10, 6, false, "half-closed pair, open way");
          if (!lone_drained) take(lone.b, 64, 4, false, "pair whose other end is closed");
          lone_drained = true;
          expect(recv(lone.b, &c, 1, MSG_DONTWAIT) == 0, "closed pair");
          take(server, 500, 5, false, "connection in the tree");
          put(client, 500, 5);
          verify_listening(listener, path, SOCK_STREAM);
          verify_listening(abstract_listener, abstract, SOCK_SEQPACKET);
          c = 'e';
          expect(write(echo.a, &c, 1) == 1 && read(echo.a, &c, 1) == 1 && c == 'e', "echo through the child");
        });
      },
      argv[0]);
}
