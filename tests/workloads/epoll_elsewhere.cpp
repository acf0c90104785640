// Epolls that watch files under numbers that were closed, or lead to other files, while the files are open under other
// numbers, also in another process only.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include <set>

#include "workload.h"

using namespace workload;

namespace {

void add(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event e{};
  e.events = events;
  e.data.u64 = data;
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e), "EPOLL_CTL_ADD");
}

std::set<uint64_t> ready(int epoll) {
  epoll_event e[16];
  std::set<uint64_t> result;
  const int n = must(epoll_wait(epoll, e, 16, 0), "epoll_wait");
  for (int i = 0; i < n; ++i) result.insert(e[i].data.u64);
  return result;
}

void bump(int event) {
  const uint64_t one = 1;
  expect(write(event, &one, sizeof one) == sizeof one, "write to eventfd");
}

void drain(int event) {
  uint64_t value = 0;
  expect(read(event, &value, sizeof value) == sizeof value, "read of eventfd");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int lowest = must(eventfd(0, EFD_NONBLOCK), "eventfd");  // its number is the first that is free
        const int epoll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1"),
                  single = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
        add(single, lowest, EPOLLIN, 6);
        const int closed = must(eventfd(0, EFD_NONBLOCK), "eventfd"),
                  reused = must(eventfd(0, EFD_NONBLOCK), "eventfd");
        const int remote = must(eventfd(1, EFD_NONBLOCK), "eventfd"), spent = must(eventfd(1, EFD_NONBLOCK), "eventfd");
        add(epoll, closed, EPOLLIN, 1);
        add(epoll, reused, EPOLLIN, 2);
        add(epoll, remote, EPOLLIN, 3);
        add(epoll, spent, EPOLLIN | EPOLLONESHOT, 4);
        expect_equal(ready(epoll).size(), 2U, "ready files");
        const int closed_now = must(dup(closed), "dup"), reused_now = must(dup(reused), "dup"),
                  spent_now = must(dup(spent), "dup"), lowest_now = must(dup(lowest), "dup");
        const pid_t parent = getpid();
        if (must(fork(), "fork") == 0)
          while (true)
            if (sleep_ms(20); getppid() != parent) _exit(0);
        close(lowest);
        close(closed);
        close(remote);  // the child has it
        close(spent);
        const int other = must(fcntl(must(eventfd(0, EFD_NONBLOCK), "eventfd"), F_DUPFD, 100), "F_DUPFD");
        close(lowest);
        must(dup2(other, reused), "dup2");
        add(epoll, reused, EPOLLIN, 5);  // the same number for two files
        w.serve([&] {
          expect(ready(epoll) == std::set<uint64_t>{3}, "the epoll does not report what the child alone has, or more");
          expect(ready(single).empty(), "the other epoll reports something");
          bump(lowest_now);
          expect(ready(single) == std::set<uint64_t>{6}, "the other epoll does not report what is ready");
          drain(lowest_now);
          bump(closed_now);
          bump(reused_now);
          bump(other);
          expect(ready(epoll) == std::set<uint64_t>({1, 2, 3, 5}), "the epoll does not report what is ready");
          drain(closed_now);
          drain(reused_now);
          drain(other);
          bump(spent_now);
          expect(!ready(epoll).contains(4), "a one-shot event came again");
        });
      },
      argv[0]);
}
