// What waits in queues of Unix sockets: senders' names and credentials, empty messages, urgent bytes, and an offset for
// peeking that stays.
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/sockios.h>

#include <array>
#include <string>
#include <vector>

#include "unix_names.h"
#include "workload.h"

using namespace workload;

namespace {

struct Message {
  std::string from, text;
};

void send_to(int fd, const std::string& name, const std::string& text) {
  socklen_t n = 0;
  const sockaddr_un a = address(name, n);
  must(sendto(fd, text.data(), text.size(), 0, reinterpret_cast<const sockaddr*>(&a), n), "sendto");
}

/// A server with messages of clients with names, of which one is gone, and of one without; some are empty.
class Datagrams {
 public:
  explicit Datagrams(const Workload& w)
      : name_(w.path("server")),
        server_(bound(name_, SOCK_DGRAM)),
        file_(w.path("client")),
        gone_(w.path("gone")),
        abstract_(std::string(1, '\0') + "migrate-queues-" + std::to_string(getpid())),
        client_(bound(file_, SOCK_DGRAM)),
        hidden_(bound(abstract_, SOCK_DGRAM)),
        nameless_(must(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket")) {
    fill();
  }

  void verify() {
    for (const Message& m : expected_) {
      char text[64];
      sockaddr_un from{};
      socklen_t n = sizeof from;
      const ssize_t got =
          must(recvfrom(server_, text, sizeof text, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &n),
               ("receive " + m.text).c_str());
      expect(std::string(text, static_cast<size_t>(got)) == m.text, "message " + m.text + " differs");
      std::string name(from.sun_path, n > offsetof(sockaddr_un, sun_path) ? n - offsetof(sockaddr_un, sun_path) : 0);
      if (!name.empty() && name.front() != '\0') name = name.c_str();
      expect(name == m.from, "message '" + m.text + "' is from '" + name + "', was from '" + m.from + "'");
    }
    char c;
    expect(recv(server_, &c, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "there are more messages");
    fill();
  }

 private:
  void fill() {
    unlink(gone_.c_str());
    const int gone = bound(gone_, SOCK_DGRAM);
    expected_.clear();
    const auto put = [&](int fd, const std::string& from, const std::string& text) {
      send_to(fd, name_, text);
      expected_.push_back({from, text});
    };
    put(client_, file_, "");
    put(client_, file_, "one");
    put(nameless_, "", "two");
    put(gone, gone_, "three");
    put(hidden_, abstract_, "");
    put(hidden_, abstract_, "four");
    put(client_, file_, "five");
    close(gone);
  }

  std::string name_;
  int server_;
  std::string file_, gone_, abstract_;
  int client_, hidden_, nameless_;
  std::vector<Message> expected_;
};

class Pair {
 public:
  explicit Pair(int type) { must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends_), "socketpair"); }
  int near() const { return ends_[0]; }
  int far() const { return ends_[1]; }
  void put(const std::string& text, int flags = 0) const {
    must(send(near(), text.data(), text.size(), flags), ("send " + text).c_str());
  }
  void expect_next(const std::string& text, const std::string& what) const {
    char buffer[64];
    const ssize_t n = must(recv(far(), buffer, sizeof buffer, MSG_DONTWAIT), what.c_str());
    const std::string got(buffer, static_cast<size_t>(n));
    expect(got == text, what + " is '" + got + "', was '" + text + "'");
  }

 private:
  int ends_[2];
};

void send_as(int fd, const std::string& text, uid_t uid) {
  iovec iov{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_CREDENTIALS;
  c->cmsg_len = CMSG_LEN(sizeof(ucred));
  const ucred who{getpid(), uid, uid};
  std::memcpy(CMSG_DATA(c), &who, sizeof who);
  must(sendmsg(fd, &header, 0), "sendmsg");
}

void expect_from(int fd, const std::string& text, uid_t uid) {
  char buffer[64];
  iovec iov{buffer, sizeof buffer};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t n = must(recvmsg(fd, &header, MSG_DONTWAIT), "recvmsg");
  const std::string got(buffer, static_cast<size_t>(n));
  expect(got == text, "what user " + std::to_string(uid) + " sent is '" + got + "', was '" + text + "'");
  const cmsghdr* c = CMSG_FIRSTHDR(&header);
  expect(c != nullptr && c->cmsg_type == SCM_CREDENTIALS, "no credentials");
  ucred who{};
  std::memcpy(&who, CMSG_DATA(c), sizeof who);
  expect_equal(who.uid, uid, "the sender of " + text);
  expect_equal(who.pid, getpid(), "the sender's pid of " + text);
}

/// Two senders, told only since the receiver asks for them after the move.
class Senders {
 public:
  Senders() { fill(); }
  void verify() {
    int on = 1, off = 0;
    for (const Pair& pair : {stream_, records_}) {
      must(setsockopt(pair.far(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "SO_PASSCRED");
      expect_from(pair.far(), "first", 1);
      expect_from(pair.far(), "second", 2);
      must(setsockopt(pair.far(), SOL_SOCKET, SO_PASSCRED, &off, sizeof off), "SO_PASSCRED");
    }
    records_.expect_next("", "an empty record");
    records_.expect_next("end", "the record behind it");
    fill();
  }

 private:
  void fill() {
    for (const Pair& pair : {stream_, records_}) {
      send_as(pair.near(), "first", 1);
      send_as(pair.near(), "second", 2);
    }
    records_.put("");
    records_.put("end");
  }
  Pair stream_{SOCK_STREAM}, records_{SOCK_SEQPACKET};
};

class Urgent {
 public:
  Urgent() { fill(); }
  void verify() {
    char c = 0;
    expect(recv(there_.far(), &c, 1, MSG_OOB) == 1 && c == 'O', "the urgent byte is not there");
    there_.expect_next("nor", "what is before the urgent byte");
    there_.expect_next("mal", "what is behind the urgent byte");
    taken_.expect_next("be", "what is before the taken byte");
    int at_mark = 0;
    must(ioctl(taken_.far(), SIOCATMARK, &at_mark), "SIOCATMARK");
    expect_equal(at_mark, 1, "SIOCATMARK");
    taken_.expect_next("hind", "what is behind the taken byte");
    first_.expect_next("rest", "what is behind a first urgent byte");
    fill();
  }

 private:
  void fill() {
    there_.put("nor");
    there_.put("O", MSG_OOB);
    there_.put("mal");
    taken_.put("be");
    taken_.put("T", MSG_OOB);
    taken_.put("hind");
    char c;
    expect(recv(taken_.far(), &c, 1, MSG_OOB) == 1, "take an urgent byte");
    first_.put("F", MSG_OOB);
    first_.put("rest");
  }
  Pair there_{SOCK_STREAM}, taken_{SOCK_STREAM}, first_{SOCK_STREAM};
};

/// A peer that is closed with data unread is a reset, told once and behind what it had sent.
class Resets {
 public:
  Resets() { fill(); }
  void verify() {
    for (size_t i = 0; i < kTexts.size(); ++i) {
      const std::string& text = kTexts[i];
      const Pair& pair = pairs_[i];
      // Byte by byte: a read that wants more than there is takes the error, too.
      char c;
      for (const char sent : text)
        expect(recv(pair.far(), &c, 1, MSG_DONTWAIT) == 1 && c == sent, "what a closed peer had sent differs");
      expect(recv(pair.far(), &c, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "a reset is not told");
      expect_equal(recv(pair.far(), &c, 1, MSG_DONTWAIT), 0, "what comes after a reset");
      close(pair.far());
    }
    fill();
  }

 private:
  static inline const std::vector<std::string> kTexts{"", "last words", std::string(50, 'x')};
  void fill() {
    const int least = 100;
    pairs_.clear();
    for (const std::string& text : kTexts) {
      const Pair& pair = pairs_.emplace_back(SOCK_STREAM);
      if (text.size() > 20) must(setsockopt(pair.far(), SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least), "SO_RCVLOWAT");
      pair.put(text);
      must(send(pair.far(), "unread", 6, 0), "send");
      close(pair.near());
    }
  }
  std::vector<Pair> pairs_;
};

class Peeking {
 public:
  Peeking() {
    for (const Pair& pair : {stream_, records_}) {
      pair.put("0123456789");
      must(setsockopt(pair.far(), SOL_SOCKET, SO_PEEK_OFF, &kOffset, sizeof kOffset), "SO_PEEK_OFF");
    }
  }
  void verify() const {
    for (const Pair& pair : {stream_, records_}) {
      int offset = 0;
      socklen_t n = sizeof offset;
      must(getsockopt(pair.far(), SOL_SOCKET, SO_PEEK_OFF, &offset, &n), "SO_PEEK_OFF");
      expect_equal(offset, kOffset, "SO_PEEK_OFF");
    }
  }

 private:
  static constexpr int kOffset = 3;
  Pair stream_{SOCK_STREAM}, records_{SOCK_SEQPACKET};
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Datagrams datagrams(w);
        Senders senders;
        Urgent urgent;
        Resets resets;
        Peeking peeking;
        w.serve([&] {
          peeking.verify();
          urgent.verify();
          resets.verify();
          senders.verify();
          datagrams.verify();
        });
      },
      argv[0]);
}
