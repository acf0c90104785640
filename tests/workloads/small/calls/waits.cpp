// More calls that block: less common ones, and ones with time-outs of their own kind.
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

struct TwoSockets {
  int one, other;
};
TwoSockets two_sockets(int type) {
  int fds[2];
  must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), "socketpair");
  return {fds[0], fds[1]};
}

constexpr timespec kThousandSeconds{1000, 0};

}  // namespace

WORKLOAD(calls, epoll_pwait2) {
  const int epoll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  const Pipe p = make_pipe();
  epoll_event e{};
  e.events = EPOLLIN;
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, p.in, &e), "epoll_ctl");
  return blocked(
      [=] {
        epoll_event got{};
        const long n = syscall(441, epoll, &got, 1, &kThousandSeconds, nullptr, 8);
        if (n == 1) drain(p.in);
        return n;
      },
      [=] { put(p.out, "x"); }, 1);
}

WORKLOAD(calls, futex_waitv) {
  struct Waiter {
    uint64_t value, address;
    uint32_t flags, reserved;
  };
  auto* word = new uint32_t(0);
  auto* waiter = new Waiter{0, reinterpret_cast<uintptr_t>(word), 2 | FUTEX_PRIVATE_FLAG, 0};
  return blocked([=] { return syscall(449, waiter, 1, 0, nullptr, 0); },
                 [=] { await([=] { return syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1) == 1; }, "who waits"); }, 0);
}

WORKLOAD(calls, condition) {
  struct Shared {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    int given = 0;
  };
  auto* s = new Shared;
  return blocked(
      [=]() -> long {
        pthread_mutex_lock(&s->mutex);
        while (s->given == 0) pthread_cond_wait(&s->condition, &s->mutex);
        const int got = s->given--;
        pthread_mutex_unlock(&s->mutex);
        return got;
      },
      [=] {
        pthread_mutex_lock(&s->mutex);
        ++s->given;
        pthread_cond_signal(&s->condition);
        pthread_mutex_unlock(&s->mutex);
      },
      1);
}

WORKLOAD(calls, waitid_of_group) {
  auto* pid = shared_memory<std::atomic<pid_t>>();
  return blocked(
      [=]() -> long {
        const pid_t child = fork();
        if (child == 0) {
          setpgid(0, 0);
          *pid = getpid();
          for (;;) pause();
        }
        setpgid(child, child);
        siginfo_t info{};
        if (waitid(P_PGID, static_cast<id_t>(child), &info, WEXITED) == -1) return -1;
        return info.si_status;
      },
      [=] {
        await([=] { return *pid != 0; }, "the child");
        must(kill(pid->exchange(0), SIGKILL), "kill");
      },
      SIGKILL);
}

WORKLOAD(calls, receive_many_with_limit) {
  const TwoSockets pair = two_sockets(SOCK_DGRAM);
  return blocked(
      [=] {
        char byte = 0;
        iovec part{&byte, 1};
        mmsghdr message{};
        message.msg_hdr.msg_iov = &part;
        message.msg_hdr.msg_iovlen = 1;
        timespec limit = kThousandSeconds;
        return recvmmsg(pair.one, &message, 1, 0, &limit);
      },
      [=] { put(pair.other, "x"); }, 1);
}

WORKLOAD(calls, send_into_full_socket) {
  const TwoSockets pair = two_sockets(SOCK_STREAM);
  must(fcntl(pair.other, F_SETFL, O_NONBLOCK), "fcntl");
  const std::string block(1 << 20, 's');
  // Partly done when it is stopped.
  return blocked([=] { return send(pair.one, block.data(), block.size(), 0); },
                 [=] {
                   size_t got = 0;
                   std::string part(1 << 16, 0);
                   await(
                       [&] {
                         for (ssize_t n = 0; (n = read(pair.other, part.data(), part.size())) > 0;)
                           got += static_cast<size_t>(n);
                         return got == block.size();
                       },
                       "all that was sent");
                 },
                 1 << 20);
}

WORKLOAD(calls, write_into_full_pipe_partly) {
  const Pipe p = make_pipe();
  must(fcntl(p.in, F_SETFL, O_NONBLOCK), "fcntl");
  const std::string block(200'000, 'w');
  return blocked([=] { return write(p.out, block.data(), block.size()); },
                 [=] {
                   size_t got = 0;
                   std::string part(1 << 16, 0);
                   await(
                       [&] {
                         for (ssize_t n = 0; (n = read(p.in, part.data(), part.size())) > 0;)
                           got += static_cast<size_t>(n);
                         return got == block.size();
                       },
                       "all that was written");
                 },
                 200'000);
}

WORKLOAD(calls, splice) {
  const Pipe one = make_pipe(), two = make_pipe();
  return blocked([=] { return splice(one.in, nullptr, two.out, nullptr, 1, 0); },
                 [=] {
                   put(one.out, "x");
                   await([=] { return drain(two.in) == "x"; }, "what is spliced");
                 },
                 1);
}

WORKLOAD(calls, read_of_signalfd) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 4);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const int fd = must(signalfd(-1, &set, SFD_CLOEXEC), "signalfd");
  return blocked(
      [=] {
        signalfd_siginfo info{};
        return read(fd, &info, sizeof info);
      },
      [] { must(kill(getpid(), SIGRTMIN + 4), "kill"); }, sizeof(signalfd_siginfo));
}

WORKLOAD(calls, read_of_timer) {
  const int fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), "timerfd_create");
  return blocked(
      [=] {
        uint64_t n = 0;
        return read(fd, &n, sizeof n) == sizeof n ? static_cast<long>(n) : -1;
      },
      [=] {
        const itimerspec soon{{}, {0, 1'000'000}};
        must(timerfd_settime(fd, 0, &soon, nullptr), "timerfd_settime");
      },
      1);
}

WORKLOAD(calls, accept_with_limit) {
  const int listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const timeval limit{1000, 0};
  must(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), "SO_RCVTIMEO");
  sockaddr name{};
  name.sa_family = AF_UNIX;
  must(bind(listener, &name, sizeof(sa_family_t)), "bind");
  must(listen(listener, 1), "listen");
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  must(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), "getsockname");
  return blocked(
      [=] {
        const int fd = accept(listener, nullptr, nullptr);
        if (fd != -1) close(fd);
        return fd == -1 ? -1L : 1L;
      },
      [=] {
        const int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        must(connect(fd, reinterpret_cast<const sockaddr*>(&address), size), "connect");
        close(fd);
      },
      1);
}

WORKLOAD(calls, priority_inheriting_futex) {
  // The kernel's own lock: its word holds the owner's number.
  auto* word = new std::atomic<uint32_t>(static_cast<uint32_t>(gettid()));
  return blocked(
      [=]() -> long {
        const long result = syscall(SYS_futex, word, FUTEX_LOCK_PI_PRIVATE, 0, nullptr);
        if (result == 0) syscall(SYS_futex, word, FUTEX_UNLOCK_PI_PRIVATE, 0, nullptr);
        return result;
      },
      [=] {
        must(syscall(SYS_futex, word, FUTEX_UNLOCK_PI_PRIVATE, 0, nullptr), "FUTEX_UNLOCK_PI");
        await([=] { return *word == 0; }, "the other to give it back");
        *word = static_cast<uint32_t>(gettid());
      },
      0);
}
