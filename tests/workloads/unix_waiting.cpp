// Connections to listening Unix sockets that nobody has accepted yet: they wait in their order, with their names, ends
// and what they tell of who connected.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <string>
#include <vector>

#include "unix_names.h"
#include "workload.h"

using namespace workload;

namespace {

ucred peer_of(int fd) {
  ucred who{};
  socklen_t n = sizeof who;
  must(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n), "SO_PEERCRED");
  return who;
}

class Server {
 public:
  /// `deleted`: between the looks its file has no name.
  Server(std::string name, int type, std::string client_name, bool deleted = false)
      : name_(std::move(name)), type_(type), client_name_(std::move(client_name)), deleted_(deleted) {
    open();
    fill();
  }

  void verify() {
    for (size_t i = 0; i < clients_.size(); ++i) {
      const int accepted = must(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK), "accept");
      int credentials = 0;
      socklen_t size = sizeof credentials;
      must(getsockopt(accepted, SOL_SOCKET, SO_PASSCRED, &credentials, &size), "SO_PASSCRED");
      expect_equal(credentials, 1, "SO_PASSCRED, which a connection has of its listener");
      sockaddr_un from{};
      socklen_t n = sizeof from;
      must(getpeername(accepted, reinterpret_cast<sockaddr*>(&from), &n), "getpeername");
      const size_t skipped = offsetof(sockaddr_un, sun_path);
      const std::string name(from.sun_path, n > skipped ? n - skipped : 0);
      expect(i != 1 || name.c_str() == client_name_, "a waiting client is called '" + name + "'");
      for (const int end : {accepted, clients_[i]}) {
        expect_equal(peer_of(end).pid, getpid(), "who is at the other end");
        expect_equal(peer_of(end).uid, geteuid(), "the user at the other end");
      }
      char c = static_cast<char>('a' + i);
      must(send(accepted, &c, 1, MSG_NOSIGNAL), "send to a client");
      expect(recv(clients_[i], &c, 1, MSG_DONTWAIT) == 1 && c == static_cast<char>('a' + i),
             "clients are out of order");
      if (i == 2)
        expect_equal(recv(accepted, &c, 1, 0), 0, "the end of a client that was shut down");
      else
        expect(send(clients_[i], "x", 1, MSG_NOSIGNAL) == 1 && recv(accepted, &c, 1, 0) == 1, "a client cannot send");
      expect_equal(fcntl(clients_[i], F_GETFL) & O_NONBLOCK, i == 0 ? O_NONBLOCK : 0, "O_NONBLOCK");
      close(accepted);
      close(clients_[i]);
    }
    expect(accept(listener_, nullptr, nullptr) == -1 && errno == EAGAIN, "there are more connections");
    if (deleted_) {
      close(listener_);
      open();
    }
    fill();
  }

 private:
  void open() {
    listener_ = bound(name_, type_);
    const int on = 1;
    must(setsockopt(listener_, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "SO_PASSCRED");
    must(listen(listener_, 8), "listen");
    must(fcntl(listener_, F_SETFL, O_NONBLOCK), "fcntl");
  }

  void fill() {
    clients_.clear();
    if (name_.front() != '\0') must(chmod(name_.c_str(), 0600), "chmod");
    socklen_t n = 0;
    const sockaddr_un a = address(name_, n);
    unlink(client_name_.c_str());
    for (int i = 0; i < 4; ++i) {
      const int fd = i == 1 ? bound(client_name_, type_)
                            : must(socket(AF_UNIX, type_ | SOCK_CLOEXEC | (i == 0 ? SOCK_NONBLOCK : 0), 0), "socket");
      must(connect(fd, reinterpret_cast<const sockaddr*>(&a), n), "connect");
      if (i == 2) must(shutdown(fd, SHUT_WR), "shutdown");
      clients_.push_back(fd);
    }
    // Who may connect is asked only once.
    if (name_.front() != '\0') must(chmod(name_.c_str(), 0), "chmod");
    if (deleted_) must(unlink(name_.c_str()), "unlink");
  }

  std::string name_;
  int type_;
  std::string client_name_;
  bool deleted_;
  int listener_ = -1;
  std::vector<int> clients_;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Server stream(w.path("stream"), SOCK_STREAM, w.path("client-1"));
        Server records(w.path("records"), SOCK_SEQPACKET, w.path("client-2"));
        Server abstract(std::string(1, '\0') + "migrate-waiting-" + std::to_string(getpid()), SOCK_STREAM,
                        w.path("client-3"));
        Server deleted(w.path("deleted"), SOCK_STREAM, w.path("client-4"), true);
        w.serve([&] {
          deleted.verify();
          stream.verify();
          records.verify();
          abstract.verify();
        });
      },
      argv[0]);
}
