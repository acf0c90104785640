// TCP connections of a program with itself: idle ones of all families, with data that waits on both sides, with more
// than the receiver has room for, half closed, with a closed peer, and one on which a thread waits.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

struct Connection {
  int client = -1, server = -1;
  std::string names[2];

  /// "ADDRESS PORT" of the four ends that the two sockets tell.
  std::string addresses() const {
    std::string all;
    for (const int fd : {client, server}) {
      sockaddr_storage a{};
      socklen_t n = sizeof a;
      must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
      all.append(reinterpret_cast<const char*>(&a), n);
      n = sizeof a;
      must(getpeername(fd, reinterpret_cast<sockaddr*>(&a), &n), "getpeername");
      all.append(reinterpret_cast<const char*>(&a), n);
    }
    return all;
  }
  /// Without TIME_WAIT.
  void reset() {
    const linger off{1, 0};
    for (int* fd : {&client, &server}) {
      if (*fd < 0) continue;
      setsockopt(*fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
      close(*fd);
      *fd = -1;
    }
  }
};

enum class Kind { v4, v6, mapped };

/// `small`: bytes of buffers; 0: as they come.
Connection connect_pair(Kind kind, int small = 0) {
  const int family = kind == Kind::v6 ? AF_INET6 : AF_INET;
  const int listener = must(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  sockaddr_storage a{};
  socklen_t n = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  a.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET6) {
    reinterpret_cast<sockaddr_in6&>(a).sin6_addr = in6addr_loopback;
  } else {
    reinterpret_cast<sockaddr_in&>(a).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  if (small != 0) must(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), "SO_RCVBUF");
  must(bind(listener, reinterpret_cast<sockaddr*>(&a), n), "bind");
  must(listen(listener, 1), "listen");
  must(getsockname(listener, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
  Connection c;
  c.client = must(socket(kind == Kind::v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  if (small != 0) must(setsockopt(c.client, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), "SO_SNDBUF");
  if (kind == Kind::mapped) {
    sockaddr_in6 to{};
    to.sin6_family = AF_INET6;
    to.sin6_port = reinterpret_cast<sockaddr_in&>(a).sin_port;
    must(inet_pton(AF_INET6, "::ffff:127.0.0.1", &to.sin6_addr), "inet_pton");
    must(connect(c.client, reinterpret_cast<sockaddr*>(&to), sizeof to), "connect");
  } else {
    must(connect(c.client, reinterpret_cast<sockaddr*>(&a), n), "connect");
  }
  c.server = must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept");
  close(listener);
  return c;
}

std::vector<uint8_t> bytes_of(size_t n, uint64_t salt) {
  std::vector<uint8_t> data(n);
  fill_pattern(data.data(), n, salt);
  return data;
}

void put(int fd, size_t n, uint64_t salt) {
  const auto data = bytes_of(n, salt);
  for (size_t done = 0; done < n;) {
    const ssize_t w = must(send(fd, data.data() + done, n - done, MSG_NOSIGNAL), "send");
    done += static_cast<size_t>(w);
  }
}

void get(int fd, size_t n, uint64_t salt, const std::string& what) {
  std::vector<uint8_t> data(n);
  for (size_t done = 0; done < n;) {
    timeval patience{10, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    const ssize_t r = recv(fd, data.data() + done, n - done, 0);
    patience = {};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    expect(r > 0, what + ": " + std::to_string(done) + " of " + std::to_string(n) + " bytes came");
    done += static_cast<size_t>(r);
  }
  expect_pattern(data.data(), n, salt, what);
}

void expect_end(int fd, const std::string& what) {
  char byte;
  expect_equal(recv(fd, &byte, 1, 0), ssize_t{0}, what + ": the end");
}

void expect_nothing(int fd, const std::string& what) {
  char byte;
  expect(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, what + ": more than was sent");
}

class Idle {
 public:
  explicit Idle(Kind kind) : connection_(connect_pair(kind)) {
    const int on = 1;
    must(setsockopt(connection_.client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
    was_ = connection_.addresses();
  }
  void verify(const std::string& what) {
    expect(connection_.addresses() == was_, what + ": addresses");
    int value = 0;
    socklen_t n = sizeof value;
    must(getsockopt(connection_.client, IPPROTO_TCP, TCP_NODELAY, &value, &n), "TCP_NODELAY");
    expect_equal(value, 1, what + ": TCP_NODELAY");
    expect_nothing(connection_.client, what);
    expect_nothing(connection_.server, what);
    for (int i = 0; i < 3; ++i) {
      put(connection_.client, 3000, 1);
      get(connection_.server, 3000, 1, what + ": to the server");
      put(connection_.server, 70, 2);
      get(connection_.client, 70, 2, what + ": to the client");
    }
  }

 private:
  Connection connection_;
  std::string was_;
};

class Queued {
 public:
  Queued() { fill(); }
  void verify() {
    get(connection_.server, kUp, 3, "queued at the server");
    get(connection_.client, kDown, 4, "queued at the client");
    expect_nothing(connection_.server, "queued");
    expect_nothing(connection_.client, "queued");
    fill();
  }

 private:
  static constexpr size_t kUp = 100'000, kDown = 50'000;
  void fill() {
    put(connection_.client, kUp, 3);
    put(connection_.server, kDown, 4);
  }
  Connection connection_ = connect_pair(Kind::v4);
};

/// Until nothing goes in any more.
class Full {
 public:
  Full() { fill(); }
  void verify() {
    get(connection_.server, bytes_, 5, "a full connection");
    sleep_ms(20);
    expect_nothing(connection_.server, "a full connection");
    fill();
  }

 private:
  void fill() {
    const auto data = bytes_of(4 << 20, 5);
    bytes_ = 0;
    for (int quiet = 0; quiet < 5;) {
      const ssize_t n =
          send(connection_.client, data.data() + bytes_, data.size() - bytes_, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) {
        bytes_ += static_cast<size_t>(n);
        quiet = 0;
      } else {
        ++quiet;
        sleep_ms(5);
      }
    }
  }
  Connection connection_ = connect_pair(Kind::v4, 20'000);
  size_t bytes_ = 0;
};

class HalfClosed {
 public:
  HalfClosed() { make(); }
  void verify() {
    get(connection_.server, 1000, 6, "half closed");
    expect_end(connection_.server, "half closed");
    put(connection_.server, 500, 7);
    get(connection_.client, 500, 7, "back on what is half closed");
    expect(send(connection_.client, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "sent on after the end");
    connection_.reset();
    make();
  }

 private:
  void make() {
    connection_ = connect_pair(Kind::v4);
    put(connection_.client, 1000, 6);
    must(shutdown(connection_.client, SHUT_WR), "shutdown");
  }
  Connection connection_;
};

/// It reads no more, and has not read all.
class Deaf {
 public:
  Deaf() { make(); }
  void verify() {
    get(connection_.server, 300, 10, "before it reads no more");
    expect_end(connection_.server, "of who reads no more");
    put(connection_.server, 400, 11);
    get(connection_.client, 400, 11, "of who reads no more");
    connection_.reset();
    make();
  }

 private:
  void make() {
    connection_ = connect_pair(Kind::v4);
    put(connection_.client, 300, 10);
    must(shutdown(connection_.server, SHUT_RD), "shutdown");
  }
  Connection connection_;
};

class PeerClosed {
 public:
  PeerClosed() { make(); }
  void verify() {
    get(connection_.server, 2000, 8, "of a closed peer");
    expect_end(connection_.server, "of a closed peer");
    connection_.reset();
    make();
  }

 private:
  void make() {
    connection_ = connect_pair(Kind::v4);
    put(connection_.client, 2000, 8);
    close(connection_.client);
    connection_.client = -1;
  }
  Connection connection_;
};

class Awaited {
 public:
  Awaited() : thread_([this] { echo(); }) {}
  void verify() {
    const long before = turns_;
    put(connection_.client, 100, 9);
    get(connection_.client, 100, 9, "from the thread that waits");
    expect_equal(turns_.load(), before + 1, "turns of the thread that waits");
  }

 private:
  void echo() {
    uint8_t data[100];
    for (;;) {
      if (recv(connection_.server, data, sizeof data, MSG_WAITALL) != sizeof data) return;
      ++turns_;
      if (send(connection_.server, data, sizeof data, MSG_NOSIGNAL) != sizeof data) return;
    }
  }
  Connection connection_ = connect_pair(Kind::v4);
  std::atomic<long> turns_ = 0;
  std::thread thread_;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Idle v4(Kind::v4), mapped(Kind::mapped);
        std::optional<Idle> v6;
        if (access("/proc/net/if_inet6", F_OK) == 0) v6.emplace(Kind::v6);
        Queued queued;
        Full full;
        HalfClosed half;
        Deaf deaf;
        PeerClosed closed;
        Awaited awaited;
        w.serve([&] {
          v4.verify("IPv4");
          mapped.verify("IPv4 mapped");
          if (v6) v6->verify("IPv6");
          queued.verify();
          full.verify();
          half.verify();
          deaf.verify();
          closed.verify();
          awaited.verify();
        });
      },
      argv[0]);
}
