// Tasks of the workload `wild`: a board that all of them share, links between parents and children, threads, sleeps.
#pragma once

#include <poll.h>
#include <sys/select.h>
#include <sys/wait.h>

#include <deque>
#include <thread>

#include "wild_files.h"

namespace wild {

constexpr int well = 42;  // exit code of a member that found nothing wrong

struct Slot {
  std::atomic<int> pid;  // 0: free; -1: taken by somebody who is not born yet
  std::atomic<uint64_t> turns;
};

/// Mapped by all members, from a memfd that survives execve(2).
struct Board {
  std::atomic<uint32_t> failed;
  Slot slots[24];

  int take() {
    for (size_t i = 1; i < std::size(slots); ++i) {
      int free = 0;
      if (slots[i].pid.compare_exchange_strong(free, -1)) return static_cast<int>(i);
    }
    return -1;
  }
};

/// One end of a socket pair between parent and child: the parent counts, the child says it back.
class Link {
 public:
  Link() = default;
  Link(int fd, uint64_t sent, uint64_t received) : fd_(fd), sent_(sent), received_(received) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  static std::pair<Link, Link> pair() {
    int fds[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "socketpair");
    return {Link(fds[0], 0, 0), Link(fds[1], 0, 0)};
  }

  void parent_turn(Random& random) {
    receive();
    if (sent_ - received_ < 30 && random.chance(50)) say(sent_++);
  }
  /// False when the parent has closed its end.
  bool child_turn() {
    const bool open = receive();
    while (open && sent_ < received_) say(sent_++);
    return open;
  }
  void hand_over(Words& words) {
    fcntl(fd_.get(), F_SETFD, 0);
    words.insert(words.end(), {static_cast<uint64_t>(fd_.get()), sent_, received_});
  }
  static Link taken_over(const uint64_t*& w) {
    w += 3;
    return Link(static_cast<int>(w[-3]), w[-2], w[-1]);
  }

 private:
  void say(uint64_t n) { expect(send(fd_.get(), &n, 8, MSG_NOSIGNAL) == 8 || errno == EPIPE, "a link takes no more"); }
  bool receive() {
    for (;;) {
      uint64_t n = 0;
      const ssize_t got = read(fd_.get(), &n, 8);
      if (got == 0) return false;
      if (got == -1) {
        expect(errno == EAGAIN || errno == ECONNRESET, std::string("read from a link: ") + std::strerror(errno));
        return errno == EAGAIN;
      }
      workload::expect_equal(n, received_, "number over a link");
      ++received_;
    }
  }
  Handle fd_;
  uint64_t sent_ = 0, received_ = 0;
};

struct Child {
  pid_t pid;
  bool lives;  // has a link and goes on until that is closed
  Link link;
};

/// A thread that counts on its own stack until it is told to end.
class Counting {
 public:
  explicit Counting(uint64_t salt) : thread_([this, salt] { run(salt); }) {}
  ~Counting() {
    end_ = true;
    thread_.join();
  }
  void verify() const { expect(right_, "a thread's stack changed"); }

 private:
  void run(uint64_t salt) {
    uint8_t pad[6000];
    workload::fill_pattern(pad, sizeof pad, salt);
    for (uint64_t n = 0; !end_; ++n) {
      pad[n % sizeof pad] ^= 1;
      workload::sleep_ms(2);
      pad[n % sizeof pad] ^= 1;
      try {
        workload::expect_pattern(pad, sizeof pad, salt, "stack");
      } catch (const std::exception&) {
        right_ = false;
      }
    }
  }
  std::atomic<bool> end_{false}, right_{true};
  std::thread thread_;
};

/// Waits about `ms` in one of many ways. None may end early or be interrupted: nobody sends signals.
inline void rest(Random& random, int64_t ms) {
  const int64_t before = workload::now_ns();
  timespec t{ms / 1000, ms % 1000 * 1'000'000};
  const size_t way = random.below(6);
  int result = 0;
  switch (way) {
    case 0:
      result = nanosleep(&t, nullptr);
      break;
    case 1:
      result = poll(nullptr, 0, static_cast<int>(ms));
      break;
    case 2: {
      timeval v{ms / 1000, ms % 1000 * 1000};
      result = select(0, nullptr, nullptr, nullptr, &v);
      break;
    }
    case 3: {
      const Handle epoll(must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1"));
      epoll_event event{};
      result = epoll_wait(epoll.get(), &event, 1, static_cast<int>(ms));
      break;
    }
    case 4: {
      const int64_t end = before + ms * 1'000'000;
      t = {end / 1'000'000'000, end % 1'000'000'000};
      result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) == 0 ? 0 : -1;
      break;
    }
    default:
      result = pselect(0, nullptr, nullptr, nullptr, &t, nullptr);
      break;
  }
  const std::string name = "rest " + std::to_string(way);
  expect(result == 0, name + ": " + std::strerror(errno));
  expect(workload::now_ns() - before >= ms * 1'000'000 - 1'000'000, name + " ended early");
}

}  // namespace wild
