// Descriptors on their way through Unix sockets (unix(7), SCM_RIGHTS): sent, and by nobody received when the program is
// moved. Most of them are open nowhere else.
#include <linux/kcmp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#include <array>
#include <csignal>
#include <utility>

#include "small.h"

namespace {

/// A descriptor that is closed with it.
class Own {
 public:
  Own() = default;
  explicit Own(int fd) : fd_(fd) {}
  Own(Own&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Own& operator=(Own&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;
  ~Own() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

/// The most of one message (SCM_MAX_FD).
constexpr size_t kMost = 253;

void send_with(int socket, const std::string& text, const std::vector<int>& fds) {
  iovec iov{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMost * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
  }
  const ssize_t n = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
  expect(n == static_cast<ssize_t>(text.size()), std::string("sendmsg: ") + std::strerror(errno));
}

struct Received {
  std::string text;
  std::vector<Own> fds;
  pid_t from = 0;  ///< with SO_PASSCRED
};

Received receive(int socket, size_t most = 64 << 10) {
  std::string text(most, '\0');
  iovec iov{text.data(), most};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMost * sizeof(int)) + CMSG_SPACE(sizeof(ucred))> control{};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t n = must(recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC), "recvmsg");
  Received received{text.substr(0, static_cast<size_t>(n)), {}};
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_type == SCM_CREDENTIALS) {
      ucred who;
      std::memcpy(&who, CMSG_DATA(c), sizeof who);
      received.from = who.pid;
    }
    if (c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at < c->cmsg_len; at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, reinterpret_cast<const char*>(c) + at, sizeof fd);
      received.fds.emplace_back(fd);
    }
  }
  expect((header.msg_flags & MSG_CTRUNC) == 0, "descriptors were lost");
  return received;
}

Received expect_message(int socket, const std::string& text, size_t fds, size_t most = 64 << 10) {
  Received received = receive(socket, most);
  expect(received.text == text, "'" + received.text + "' was read for '" + text + "'");
  expect_equal(received.fds.size(), fds, "descriptors of '" + text + "'");
  return received;
}

/// Sent, and closed here.
void give_away(int socket, const std::string& text, std::vector<Own> owned) {
  std::vector<int> fds;
  for (const Own& one : owned) fds.push_back(one.get());
  send_with(socket, text, fds);
}

template <typename... T>
std::vector<Own> list(T... fds) {
  std::vector<Own> owned;
  (owned.emplace_back(std::move(fds)), ...);
  return owned;
}

int counter(uint64_t value) {
  return must(eventfd(static_cast<unsigned>(value), EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
}

void expect_count(int fd, uint64_t value) {
  uint64_t is = 0;
  expect(read(fd, &is, sizeof is) == sizeof is, "the eventfd cannot be read");
  expect_equal(is, value, "the eventfd");
  must(write(fd, &is, sizeof is), "write");
}

bool same_description(int a, int b) {
  const long r = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b);
  allowed(r, "kcmp");
  return r == 0;
}

}  // namespace

WORKLOAD(in_flight, file_in_stream) {
  const Ends s = socket_ends(SOCK_STREAM);
  Own file(place.open_file("f"));
  put(file.get(), "0123456789");
  must(lseek(file.get(), 3, SEEK_SET), "lseek");
  const auto send = [s](Own fd) {
    send_with(s.from, "one", {});
    give_away(s.from, "two", list(std::move(fd)));
    send_with(s.from, "three", {});
  };
  send(std::move(file));
  return [s, send] {
    expect_message(s.to, "one", 0, 3);
    Received got = expect_message(s.to, "two", 1);
    expect_message(s.to, "three", 0);
    expect_equal(lseek(got.fds[0].get(), 0, SEEK_CUR), 3, "the position");
    char c = 0;
    expect(pread(got.fds[0].get(), &c, 1, 7) == 1 && c == '7', "the file's content");
    send(std::move(got.fds[0]));
  };
}

WORKLOAD(in_flight, read_across_in_stream) {
  const Ends s = socket_ends(SOCK_STREAM);
  const auto send = [s] {
    send_with(s.from, "before ", {});
    give_away(s.from, "with", list(counter(1)));
    send_with(s.from, "more", {});
    give_away(s.from, "and", list(counter(2), counter(3)));
  };
  send();
  return [s, send] {
    Received first = expect_message(s.to, "before with", 1);
    Received second = expect_message(s.to, "moreand", 2);
    expect_count(first.fds[0].get(), 1);
    expect_count(second.fds[0].get(), 2);
    expect_count(second.fds[1].get(), 3);
    send();
  };
}

WORKLOAD(in_flight, long_piece_of_stream) {
  const Ends s = socket_ends(SOCK_STREAM);
  const std::string text(20'000, 'l');
  const auto send = [s, text] {
    send_with(s.from, text, {});
    give_away(s.from, text, list(counter(5)));
  };
  send();
  return [s, send, text] {
    expect_message(s.to, text, 0, text.size());
    // The first byte brings it.
    Received got = expect_message(s.to, text.substr(0, 1), 1, 1);
    expect_count(got.fds[0].get(), 5);
    expect_message(s.to, text.substr(1), 0);
    send();
  };
}

WORKLOAD(in_flight, kinds_in_datagrams) {
  const Ends s = socket_ends(SOCK_DGRAM);
  const Pipe p = make_pipe();
  put(p.out, "in the pipe");
  Own memory(must(memfd_create("waits", MFD_CLOEXEC), "memfd_create"));
  put(memory.get(), "in memory");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  Own signals(must(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd"));
  Own timer(must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create"));
  const itimerspec later{{0, 0}, {100'000, 0}};
  must(timerfd_settime(timer.get(), 0, &later, nullptr), "timerfd_settime");
  give_away(s.from, "kinds", list(p.in, p.out, std::move(memory), std::move(signals), std::move(timer), counter(7)));
  give_away(s.from, "", {});
  return [s] {
    Received got = expect_message(s.to, "kinds", 6);
    expect_message(s.to, "", 0);
    expect(drain(got.fds[0].get()) == "in the pipe", "the pipe's content");
    put(got.fds[1].get(), "in the pipe");
    char text[16] = {};
    expect(pread(got.fds[2].get(), text, sizeof text, 0) == 9 && std::string(text) == "in memory", "the memfd");
    must(kill(getpid(), SIGUSR2), "kill");
    signalfd_siginfo info{};
    expect(read(got.fds[3].get(), &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR2, "the signalfd");
    itimerspec left{};
    must(timerfd_gettime(got.fds[4].get(), &left), "timerfd_gettime");
    expect(left.it_value.tv_sec > 90'000 && left.it_value.tv_sec < 100'001, "the timer");
    expect_count(got.fds[5].get(), 7);
    give_away(s.from, "kinds", std::move(got.fds));
    give_away(s.from, "", {});
  };
}

WORKLOAD(in_flight, open_here_too) {
  const Ends s = socket_ends(SOCK_SEQPACKET);
  const int here = place.open_file("f");
  put(here, "0123456789");
  send_with(s.from, "twice", {here, here});
  return [s, here] {
    const Received got = expect_message(s.to, "twice", 2);
    expect(same_description(got.fds[0].get(), here) && same_description(got.fds[1].get(), here),
           "what was one description is several");
    must(lseek(got.fds[0].get(), 4, SEEK_SET), "lseek");
    expect_equal(lseek(here, 0, SEEK_CUR), 4, "the position");
    send_with(s.from, "twice", {here, here});
  };
}

WORKLOAD(in_flight, one_description_in_two_queues) {
  const Ends a = socket_ends(SOCK_STREAM), b = socket_ends(SOCK_DGRAM);
  const auto send = [a, b](const Own& fd) {
    send_with(a.from, "a", {fd.get()});
    send_with(b.from, "b", {fd.get()});
  };
  send(Own(place.open_file("f")));
  return [a, b, send] {
    Received one = expect_message(a.to, "a", 1), two = expect_message(b.to, "b", 1);
    expect(same_description(one.fds[0].get(), two.fds[0].get()), "one description is two");
    send(one.fds[0]);
  };
}

WORKLOAD(in_flight, empty_message) {
  const Ends s = socket_ends(SOCK_SEQPACKET);
  const auto send = [s] {
    give_away(s.from, "", list(counter(9)));
    send_with(s.from, "behind", {});
  };
  send();
  return [s, send] {
    Received got = expect_message(s.to, "", 1);
    expect_count(got.fds[0].get(), 9);
    expect_message(s.to, "behind", 0);
    send();
  };
}

WORKLOAD(in_flight, socket_with_a_queue) {
  const Ends outer = socket_ends(SOCK_STREAM), inner = socket_ends(SOCK_STREAM), innermost = socket_ends(SOCK_DGRAM);
  give_away(innermost.from, "innermost", list(counter(11)));
  give_away(inner.from, "inner", list(innermost.from, innermost.to));
  give_away(outer.from, "outer", list(inner.from, inner.to));
  return [outer] {
    Received first = expect_message(outer.to, "outer", 2);
    Received second = expect_message(first.fds[1].get(), "inner", 2);
    Received third = expect_message(second.fds[1].get(), "innermost", 1);
    expect_count(third.fds[0].get(), 11);
    give_away(second.fds[0].get(), "innermost", std::move(third.fds));
    const int inner_from = first.fds[0].get();
    give_away(inner_from, "inner", std::move(second.fds));
    give_away(outer.from, "outer", std::move(first.fds));
  };
}

WORKLOAD(in_flight, socket_in_its_own_queue) {
  const Ends s = socket_ends(SOCK_STREAM);
  send_with(s.from, "myself", {s.to, s.from});
  return [s] {
    const Received got = expect_message(s.to, "myself", 2);
    expect(same_description(got.fds[0].get(), s.to) && same_description(got.fds[1].get(), s.from),
           "other sockets than those that were sent");
    send_with(s.from, "myself", {s.to, s.from});
  };
}

WORKLOAD(in_flight, peer_of_a_socket_here) {
  const Ends way = socket_ends(SOCK_STREAM), s = socket_ends(SOCK_STREAM);
  put(s.from, "to the one on its way");
  give_away(way.from, "peer", list(s.to));
  return [way, s] {
    Received got = expect_message(way.to, "peer", 1);
    expect(drain(got.fds[0].get()) == "to the one on its way", "what waits there");
    put(got.fds[0].get(), "answer");
    expect(drain(s.from) == "answer", "the connection is broken");
    put(s.from, "to the one on its way");
    give_away(way.from, "peer", std::move(got.fds));
  };
}

WORKLOAD(in_flight, only_writer_of_a_pipe) {
  const Ends s = socket_ends(SOCK_STREAM);
  const Pipe p = make_pipe(O_NONBLOCK);
  give_away(s.from, "writer", list(p.out));
  return [s, p] {
    char c;
    expect(read(p.in, &c, 1) == -1 && errno == EAGAIN, "the pipe has lost its writer");
    Received got = expect_message(s.to, "writer", 1);
    put(got.fds[0].get(), "w");
    expect(drain(p.in) == "w", "what was written");
    give_away(s.from, "writer", std::move(got.fds));
  };
}

WORKLOAD(in_flight, listener) {
  const Ends s = socket_ends(SOCK_STREAM);
  const int listening = static_cast<int>(must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::snprintf(name.sun_path, sizeof name.sun_path, "%s", place.path("l").c_str());
  must(bind(listening, reinterpret_cast<const sockaddr*>(&name), sizeof name), "bind");
  must(listen(listening, 3), "listen");
  give_away(s.from, "listener", list(listening));
  return [s, name] {
    Received got = expect_message(s.to, "listener", 1);
    const Own client(must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
    must(connect(client.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name), "connect");
    const Own served(must(accept4(got.fds[0].get(), nullptr, nullptr, SOCK_CLOEXEC), "accept"));
    put(client.get(), "hello");
    expect(drain(served.get()) == "hello", "the connection");
    give_away(s.from, "listener", std::move(got.fds));
  };
}

WORKLOAD(in_flight, as_many_as_may_be) {
  const Ends s = socket_ends(SOCK_DGRAM);
  std::vector<Own> all;
  for (size_t i = 0; i < kMost; ++i) all.emplace_back(counter(i));
  give_away(s.from, "many", std::move(all));
  return [s] {
    Received got = expect_message(s.to, "many", kMost);
    for (size_t i = 1; i < kMost; ++i) expect_count(got.fds[i].get(), i);
    give_away(s.from, "many", std::move(got.fds));
  };
}

WORKLOAD(in_flight, with_credentials) {
  const Ends s = socket_ends(SOCK_STREAM);
  const int on = 1;
  must(setsockopt(s.to, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "SO_PASSCRED");
  const auto send = [s] { give_away(s.from, "credentials", list(counter(4))); };
  send();
  return [s, send] {
    const Received got = expect_message(s.to, "credentials", 1);
    expect_equal(got.from, getpid(), "the sender");
    expect_count(got.fds[0].get(), 4);
    send();
  };
}

WORKLOAD(in_flight, behind_a_peek_offset) {
  const Ends s = socket_ends(SOCK_STREAM);
  const auto send = [s] {
    send_with(s.from, "ab", {});
    give_away(s.from, "cd", list(counter(6)));
    const int at = 1;
    must(setsockopt(s.to, SOL_SOCKET, SO_PEEK_OFF, &at, sizeof at), "SO_PEEK_OFF");
  };
  send();
  return [s, send] {
    char text[2];
    expect(recv(s.to, text, 1, MSG_PEEK | MSG_DONTWAIT) == 1 && text[0] == 'b', "what a look gives");
    const Received got = expect_message(s.to, "abcd", 1);
    expect_count(got.fds[0].get(), 6);
    send();
  };
}

WORKLOAD(in_flight, to_another_process) {
  const Ends there = socket_ends(SOCK_SEQPACKET), back = socket_ends(SOCK_SEQPACKET);
  const pid_t child = fork();
  if (child == 0) {
    close(there.from);
    close(back.to);
    // Asked only when it is to answer: until then what was sent waits.
    char word;
    while (recv(back.from, &word, 1, 0) == 1) {
      try {
        Received got = expect_message(there.to, "for you", 2);
        expect_count(got.fds[0].get(), 8);
        give_away(back.from, "well", std::move(got.fds));
      } catch (const std::exception& e) {
        send_with(back.from, e.what(), {});
      }
    }
    _exit(0);
  }
  must(child, "fork");
  close(there.to);
  close(back.from);
  give_away(there.from, "for you", list(counter(8), place.open_file("f")));
  return [there, back] {
    send_with(back.to, "?", {});
    pollfd p{back.to, POLLIN, 0};
    expect(poll(&p, 1, 10'000) == 1, "the other process does not answer");
    Received got = expect_message(back.to, "well", 2);
    give_away(there.from, "for you", std::move(got.fds));
  };
}

WORKLOAD(in_flight, folder_and_path) {
  const Ends s = socket_ends(SOCK_STREAM);
  put(Own(place.open_file("inside")).get(), "x");
  give_away(s.from, "folder",
            list(must(open(place.dir().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open"),
                 must(open(place.path("inside").c_str(), O_PATH | O_CLOEXEC), "open")));
  return [s] {
    Received got = expect_message(s.to, "folder", 2);
    const Own inside(must(openat(got.fds[0].get(), "inside", O_RDONLY | O_CLOEXEC), "openat"));
    struct stat a {
    }, b{};
    must(fstat(inside.get(), &a), "fstat");
    must(fstat(got.fds[1].get(), &b), "fstat");
    expect(a.st_ino == b.st_ino, "another file");
    give_away(s.from, "folder", std::move(got.fds));
  };
}

WORKLOAD(in_flight, deleted_file) {
  const Ends s = socket_ends(SOCK_DGRAM);
  Own file(place.open_file("gone"));
  put(file.get(), "still here");
  must(unlink(place.path("gone").c_str()), "unlink");
  give_away(s.from, "deleted", list(std::move(file)));
  return [s] {
    Received got = expect_message(s.to, "deleted", 1);
    char text[16] = {};
    expect(pread(got.fds[0].get(), text, sizeof text, 0) == 10 && std::string(text) == "still here", "its content");
    give_away(s.from, "deleted", std::move(got.fds));
  };
}

// Only the kernel's queue keeps both ends.
WORKLOAD(in_flight, connection_of_nobody_else) {
  const Ends way = socket_ends(SOCK_DGRAM), s = socket_ends(SOCK_STREAM);
  put(s.from, "forth");
  put(s.to, "and back");
  give_away(way.from, "one end", list(s.from));
  give_away(way.from, "the other", list(s.to));
  return [way] {
    Received one = expect_message(way.to, "one end", 1), other = expect_message(way.to, "the other", 1);
    expect(drain(other.fds[0].get()) == "forth" && drain(one.fds[0].get()) == "and back", "what waits there");
    put(one.fds[0].get(), "forth");
    put(other.fds[0].get(), "and back");
    give_away(way.from, "one end", std::move(one.fds));
    give_away(way.from, "the other", std::move(other.fds));
  };
}

// The peer is closed: what it had sent waits all the same.
WORKLOAD(in_flight, sender_is_closed) {
  const Ends way = socket_ends(SOCK_DGRAM);
  const auto send = [way] {
    const Ends s = socket_ends(SOCK_STREAM);
    give_away(s.from, "last words", list(counter(12)));
    close(s.from);
    give_away(way.from, "receiver", list(s.to));
  };
  send();
  return [way, send] {
    Received got = expect_message(way.to, "receiver", 1);
    Received words = expect_message(got.fds[0].get(), "last words", 1);
    expect_count(words.fds[0].get(), 12);
    char c;
    expect(recv(got.fds[0].get(), &c, 1, MSG_DONTWAIT) == 0, "it does not end");
    send();
  };
}
