// What waits in the queues of Unix sockets, beyond what unix_queues.cpp has.
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>

#include "small.h"

namespace {

void turn_on(int socket, int option) {
  const int on = 1;
  must(setsockopt(socket, SOL_SOCKET, option, &on, sizeof on), "setsockopt");
}

struct Heard {
  std::string text;
  pid_t from = 0;
  bool timed = false;
};

Heard hear(int socket) {
  std::array<char, 64> text{};
  iovec iov{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, 256> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t n = must(recvmsg(socket, &header, MSG_DONTWAIT), "recvmsg");
  Heard heard{std::string(text.data(), static_cast<size_t>(n))};
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    heard.timed |= c->cmsg_type == SCM_TIMESTAMP;
    if (c->cmsg_type != SCM_CREDENTIALS) continue;
    ucred who;
    std::memcpy(&who, CMSG_DATA(c), sizeof who);
    heard.from = who.pid;
  }
  return heard;
}

}  // namespace

// Times stand before the credentials, and an empty message is one only by those.
WORKLOAD(unix_sockets, senders_told_with_times) {
  const Ends s = socket_ends(SOCK_DGRAM), order = socket_ends(SOCK_STREAM);
  turn_on(s.to, SO_TIMESTAMP);
  turn_on(s.to, SO_PASSCRED);
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    close(order.from);
    char word;
    while (recv(order.to, &word, 1, 0) == 1)
      for (const std::string text : {"by the child", "", "once more"})
        if (send(s.from, text.data(), text.size(), 0) < 0) _exit(1);
    _exit(0);  // the parent is gone
  }
  const auto say = [s, order] {
    must(send(order.from, "!", 1, 0), "send");
    pollfd p{s.to, POLLIN, 0};
    expect(poll(&p, 1, 10'000) == 1, "the child sends nothing");
  };
  say();
  return [s, child, say] {
    for (const char* text : {"by the child", "", "once more"}) {
      pollfd p{s.to, POLLIN, 0};
      expect(poll(&p, 1, 10'000) == 1, "nothing comes");
      const Heard heard = hear(s.to);
      expect(heard.text == text, "'" + heard.text + "' was read for '" + text + "'");
      expect_equal(heard.from, child, "the sender of '" + std::string(text) + "'");
      expect(heard.timed, "no time is told");
    }
    say();
  };
}

// Pieces of a stream stand apart by their senders where these are told, and by nothing else.
WORKLOAD(unix_sockets, two_senders_told_by_pidfd) {
  constexpr int kPassPidfd = 76;  // SO_PASSPIDFD (linux/socket.h)
  const Ends s = socket_ends(SOCK_STREAM), order = socket_ends(SOCK_STREAM);
  const int on = 1;
  if (setsockopt(s.to, SOL_SOCKET, kPassPidfd, &on, sizeof on) == -1) throw NotHere("the kernel has no SO_PASSPIDFD");
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    close(order.from);
    char word;
    while (recv(order.to, &word, 1, 0) == 1)
      if (send(s.from, "child", 5, 0) != 5 || send(order.to, "!", 1, 0) != 1) _exit(1);
    _exit(0);  // the parent is gone
  }
  const auto say = [s, order] {
    put(s.from, "parent");
    put(order.from, "!");
    pollfd p{order.from, POLLIN, 0};
    expect(poll(&p, 1, 10'000) == 1 && drain(order.from) == "!", "the child sends nothing");
  };
  say();
  return [s, say] {
    for (const char* text : {"parent", "child"}) {
      int marked = 1;
      must(ioctl(s.to, SIOCATMARK, &marked), "SIOCATMARK");
      expect_equal(marked, 0, "the mark of an urgent byte");
      char is[16] = {};
      expect(recv(s.to, is, sizeof is, MSG_DONTWAIT) > 0, "nothing is there");
      expect(std::string(is) == text, "'" + std::string(is) + "' was read for '" + text + "'");
    }
    say();
  };
}
