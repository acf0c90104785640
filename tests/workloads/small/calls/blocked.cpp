// Calls that block stay so, until what they wait for comes: none may end with EINTR, or too early.
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

constexpr int kLong = 1'000'000;  // ms: nothing here waits that long
const timespec kLongSpan{1000, 0};

/// `call` gets the end to read from, which is empty until it is to end.
Verify blocked_on_pipe(const std::function<long(int)>& call, long want) {
  const Pipe p = make_pipe();
  return blocked(
      [=] {
        const long result = call(p.in);
        if (result > 0) drain(p.in);
        return result;
      },
      [=] { put(p.out, "x"); }, want);
}

struct Pair {
  int one, other;
};
Pair make_pair(int type) {
  int fds[2];
  must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), "socketpair");
  return {fds[0], fds[1]};
}

Verify blocked_on_socket(int type, const std::function<long(int)>& call, long want) {
  const Pair pair = make_pair(type);
  return blocked([=] { return call(pair.one); }, [=] { must(write(pair.other, "x", 1), "write"); }, want);
}

long futex(uint32_t* word, int operation, uint32_t value, const timespec* span = nullptr, uint32_t* other = nullptr,
           uint32_t third = 0) {
  return syscall(SYS_futex, word, operation, value, span, other, third);
}

Verify blocked_on_futex(uint32_t* word, int wait, const timespec* span, uint32_t bits = 0) {
  return blocked([=] { return futex(word, wait, 0, span, nullptr, bits); },
                 [=] {
                   const int wake = (wait & FUTEX_PRIVATE_FLAG) |
                                    ((wait & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET ? FUTEX_WAKE_BITSET : FUTEX_WAKE);
                   await([=] { return futex(word, wake, 1, nullptr, nullptr, bits) == 1; },
                         "somebody who waits at the futex");
                 },
                 0);
}

}  // namespace

WORKLOAD(calls, read) {
  const Pipe p = make_pipe();
  return blocked(
      [=] {
        char c = 0;
        return read(p.in, &c, 1);
      },
      [=] { put(p.out, "x"); }, 1);
}

WORKLOAD(calls, write) {
  const Pipe p = make_pipe();
  must(fcntl(p.in, F_SETFL, O_NONBLOCK), "fcntl");
  must(fcntl(p.out, F_SETPIPE_SZ, 4096), "F_SETPIPE_SZ");
  put(p.out, std::string(4096, 'x'));
  return blocked([=] { return write(p.out, std::string(4096, 'y').data(), 4096); }, [=] { drain(p.in); }, 4096);
}

WORKLOAD(calls, poll) {
  return blocked_on_pipe(
      [](int fd) {
        pollfd p{fd, POLLIN, 0};
        return poll(&p, 1, kLong);
      },
      1);
}

WORKLOAD(calls, poll_for_ever) {
  return blocked_on_pipe(
      [](int fd) {
        pollfd p{fd, POLLIN, 0};
        return poll(&p, 1, -1);
      },
      1);
}

WORKLOAD(calls, ppoll) {
  return blocked_on_pipe(
      [](int fd) {
        pollfd p{fd, POLLIN, 0};
        sigset_t none;
        sigfillset(&none);
        return ppoll(&p, 1, &kLongSpan, &none);
      },
      1);
}

WORKLOAD(calls, select) {
  return blocked_on_pipe(
      [](int fd) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        timeval span{1000, 0};
        return select(fd + 1, &set, nullptr, nullptr, &span);
      },
      1);
}

WORKLOAD(calls, pselect) {
  return blocked_on_pipe(
      [](int fd) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        sigset_t all;
        sigfillset(&all);
        return pselect(fd + 1, &set, nullptr, nullptr, nullptr, &all);
      },
      1);
}

namespace {

Verify blocked_in_epoll(int ms) {
  const int epoll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  const Pipe p = make_pipe();
  epoll_event e{};
  e.events = EPOLLIN;
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, p.in, &e), "epoll_ctl");
  return blocked(
      [=] {
        epoll_event got{};
        const long n = epoll_wait(epoll, &got, 1, ms);
        if (n == 1) drain(p.in);
        return n;
      },
      [=] { put(p.out, "x"); }, 1);
}

}  // namespace

WORKLOAD(calls, epoll_wait) { return blocked_in_epoll(kLong); }
WORKLOAD(calls, epoll_wait_for_ever) { return blocked_in_epoll(-1); }

WORKLOAD(calls, futex_private) { return blocked_on_futex(new uint32_t(0), FUTEX_WAIT_PRIVATE, nullptr); }
WORKLOAD(calls, futex_private_with_limit) { return blocked_on_futex(new uint32_t(0), FUTEX_WAIT_PRIVATE, &kLongSpan); }
WORKLOAD(calls, futex_shared) { return blocked_on_futex(shared_memory<uint32_t>(), FUTEX_WAIT, nullptr); }
WORKLOAD(calls, futex_shared_with_limit) { return blocked_on_futex(shared_memory<uint32_t>(), FUTEX_WAIT, &kLongSpan); }
WORKLOAD(calls, futex_bitset) {
  return blocked_on_futex(new uint32_t(0), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, nullptr, 0x10);
}

// Two processes, one futex.
WORKLOAD(calls, futex_of_child) {
  auto* words = shared_memory<std::atomic<uint32_t>>(2);  // the futex, and how often somebody was woken
  const pid_t parent = getpid();
  if (must(fork(), "fork") == 0) {
    while (getppid() == parent) {
      if (futex(reinterpret_cast<uint32_t*>(words), FUTEX_WAIT, 0, nullptr) != 0) std::_Exit(1);
      ++words[1];
    }
    std::_Exit(0);
  }
  return [=] {
    const uint32_t before = words[1];
    await([=] { return futex(reinterpret_cast<uint32_t*>(words), FUTEX_WAKE, 1) == 1; }, "the child at the futex");
    await([=] { return words[1] == before + 1; }, "the child to be woken");
  };
}

WORKLOAD(calls, mutex) {
  auto* mutex = new pthread_mutex_t PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(mutex);
  return blocked(
      [=] {
        const long result = pthread_mutex_lock(mutex);
        pthread_mutex_unlock(mutex);
        return result;
      },
      [=] { pthread_mutex_unlock(mutex); }, 0, [=] { pthread_mutex_lock(mutex); });
}

WORKLOAD(calls, mutex_with_priority_inheritance) {
  auto* mutex = new pthread_mutex_t;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  pthread_mutex_init(mutex, &attributes);
  pthread_mutex_lock(mutex);
  return blocked(
      [=] {
        const long result = pthread_mutex_lock(mutex);
        pthread_mutex_unlock(mutex);
        return result;
      },
      [=] { pthread_mutex_unlock(mutex); }, 0, [=] { pthread_mutex_lock(mutex); });
}

WORKLOAD(calls, receive_stream) {
  return blocked_on_socket(
      SOCK_STREAM,
      [](int fd) {
        char c = 0;
        return recv(fd, &c, 1, 0);
      },
      1);
}

WORKLOAD(calls, receive_message) {
  return blocked_on_socket(
      SOCK_DGRAM,
      [](int fd) {
        char c = 0;
        iovec part{&c, 1};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        return recvmsg(fd, &message, 0);
      },
      1);
}

WORKLOAD(calls, receive_with_limit) {
  return blocked_on_socket(
      SOCK_SEQPACKET,
      [](int fd) {
        const timeval span{500, 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &span, sizeof span);
        char c = 0;
        return recv(fd, &c, 1, 0);
      },
      1);
}

WORKLOAD(calls, accept) {
  const int listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", place.path("s").c_str());
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  must(bind(listener, name, sizeof address), "bind");
  must(listen(listener, 5), "listen");
  return blocked(
      [=] {
        const int fd = accept(listener, nullptr, nullptr);
        if (fd != -1) close(fd);
        return fd == -1 ? -1L : 1L;
      },
      [=] {
        const int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        must(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), "connect");
        close(fd);
      },
      1);
}

WORKLOAD(calls, wait_for_child) {
  struct Shared {
    std::atomic<pid_t> child;
  };
  auto* shared = shared_memory<Shared>();
  return blocked(
      [=]() -> long {
        const pid_t pid = fork();
        if (pid == 0) {
          for (;;) pause();
        }
        shared->child = pid;
        int status = 0;
        if (waitpid(pid, &status, 0) != pid) return -1;
        return WTERMSIG(status);
      },
      [=] {
        await([=] { return shared->child != 0; }, "the child");
        must(kill(shared->child.exchange(0), SIGKILL), "kill");
      },
      SIGKILL);
}

WORKLOAD(calls, wait_for_signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return blocked([=] { return sigtimedwait(&set, nullptr, &kLongSpan); },
                 [] { must(kill(getpid(), SIGRTMIN + 3), "kill"); }, SIGRTMIN + 3);
}

WORKLOAD(calls, wait_for_signal_for_ever) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return blocked([=] { return sigwaitinfo(&set, nullptr); }, [] { must(kill(getpid(), SIGRTMIN + 3), "kill"); },
                 SIGRTMIN + 3);
}

WORKLOAD(calls, read_of_counter) {
  const int fd = must(eventfd(0, EFD_CLOEXEC), "eventfd");
  return blocked(
      [=] {
        uint64_t n = 0;
        return read(fd, &n, sizeof n) == sizeof n ? static_cast<long>(n) : -1;
      },
      [=] {
        const uint64_t n = 9;
        must(write(fd, &n, sizeof n), "write");
      },
      9);
}

WORKLOAD(calls, open_of_fifo) {
  must(mkfifo(place.path("fifo").c_str(), 0600), "mkfifo");
  const std::string path = place.path("fifo");
  return blocked(
      [=] {
        const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd != -1) close(fd);
        return fd == -1 ? -1L : 1L;
      },
      [=] {
        const int fd = must(open(path.c_str(), O_WRONLY | O_CLOEXEC), "open");
        close(fd);
      },
      1);
}

// A clock that stands while everybody sleeps.
WORKLOAD(calls, sleep_by_processor_time) {
  constexpr int64_t kSpan = 300'000'000;
  return blocked(
      [] {
        const timespec span{0, kSpan};
        const int error = clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, 0, &span, nullptr);
        return error == 0 ? 0L : -1L;
      },
      [] {
        const auto used = [] {
          timespec now{};
          clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
          return now.tv_sec * 1'000'000'000 + now.tv_nsec;
        };
        for (const int64_t until = used() + 2 * kSpan; used() < until;) {
        }
      },
      0);
}
