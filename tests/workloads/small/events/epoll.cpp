// epoll(7): what is watched, and how.
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "small.h"

namespace {

void add(int epoll, int fd, uint32_t events, uint64_t data = 0) {
  epoll_event e{};
  e.events = events;
  e.data.u64 = data;
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e), "epoll_ctl");
}

int make_epoll() { return must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1"); }

/// What it says now: "EVENTS:DATA " each.
std::string ready(int epoll) {
  epoll_event events[16];
  const int n = must(epoll_wait(epoll, events, 16, 0), "epoll_wait");
  std::string all;
  for (int i = 0; i < n; ++i) all += std::to_string(events[i].events) + ":" + std::to_string(events[i].data.u64) + " ";
  return all;
}

void expect_ready(int epoll, const std::string& want, const std::string& when) {
  const std::string got = ready(epoll);
  expect(got == want, when + " epoll_wait says '" + got + "', should say '" + want + "'");
}

}  // namespace

WORKLOAD(events, level) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN, 0x1234567890abcdef);
  return [=] {
    const std::string mine = "1:" + std::to_string(0x1234567890abcdef) + " ";
    expect_ready(epoll, "", "with nothing to read");
    put(p.out, "x");
    expect_ready(epoll, mine, "with a byte");
    expect_ready(epoll, mine, "with the same byte");
    drain(p.in);
  };
}

WORKLOAD(events, level_ready) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN, 5);
  put(p.out, "x");
  return [=] { expect_ready(epoll, "1:5 ", "with a byte"); };
}

WORKLOAD(events, edge) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN | EPOLLET, 5);
  return [=] {
    put(p.out, "x");
    expect_ready(epoll, "1:5 ", "with a new byte");
    expect_ready(epoll, "", "with the same byte");
    drain(p.in);
  };
}

WORKLOAD(events, one_shot) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN | EPOLLONESHOT, 5);
  return [=] {
    put(p.out, "x");
    expect_ready(epoll, "1:5 ", "armed");
    expect_ready(epoll, "", "not armed");
    drain(p.in);
    epoll_event e{};
    e.events = EPOLLIN | EPOLLONESHOT;
    e.data.u64 = 5;
    must(epoll_ctl(epoll, EPOLL_CTL_MOD, p.in, &e), "epoll_ctl");
  };
}

WORKLOAD(events, one_shot_disarmed) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN | EPOLLONESHOT, 5);
  put(p.out, "x");
  expect_ready(epoll, "1:5 ", "armed");
  return [=] { expect_ready(epoll, "", "disarmed"); };
}

WORKLOAD(events, exclusive) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN | EPOLLEXCLUSIVE, 5);
  return [=] {
    expect(text_of("/proc/self/fdinfo/" + std::to_string(epoll)).find("events: 10000019") != std::string::npos,
           "EPOLLEXCLUSIVE is gone");
    put(p.out, "x");
    expect_ready(epoll, "1:5 ", "with a byte");
    drain(p.in);
  };
}

WORKLOAD(events, nested) {
  const Pipe p = make_pipe();
  const int inner = make_epoll(), outer = make_epoll();
  add(inner, p.in, EPOLLIN, 1);
  add(outer, inner, EPOLLIN, 2);
  return [=] {
    expect_ready(outer, "", "with nothing to read");
    put(p.out, "x");
    expect_ready(outer, "1:2 ", "with a byte");
    expect_ready(inner, "1:1 ", "with a byte, inside,");
    drain(p.in);
  };
}

WORKLOAD(events, watched_twice) {
  const Pipe p = make_pipe();
  const int one = make_epoll(), other = make_epoll();
  add(one, p.in, EPOLLIN, 1);
  add(other, p.in, EPOLLIN, 2);
  const int copy = must(fcntl(p.in, F_DUPFD_CLOEXEC, 0), "dup");
  add(one, copy, EPOLLIN | EPOLLET, 3);
  return [=] {
    put(p.out, "x");
    expect_ready(other, "1:2 ", "the other one");
    const std::string got = ready(one);
    expect(got == "1:1 1:3 " || got == "1:3 1:1 ", "two entries for one pipe say " + got);
    drain(p.in);
    ready(one);
  };
}

WORKLOAD(events, removed) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN, 1);
  must(epoll_ctl(epoll, EPOLL_CTL_DEL, p.in, nullptr), "epoll_ctl");
  put(p.out, "x");
  return [=] { expect_ready(epoll, "", "with nothing watched"); };
}

WORKLOAD(events, hang_up) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, 0, 4);
  close(p.out);
  return [=] { expect_ready(epoll, "16:4 ", "after the writer has gone"); };
}

WORKLOAD(events, many) {
  const int epoll = make_epoll();
  std::vector<int> all;
  for (uint64_t i = 0; i < 100; ++i) add(epoll, all.emplace_back(must(eventfd(0, EFD_CLOEXEC), "eventfd")), EPOLLIN, i);
  return [=] {
    for (uint64_t i = 0; i < 100; i += 9) {
      uint64_t one = 1;
      must(write(all[i], &one, 8), "write");
      expect_ready(epoll, "1:" + std::to_string(i) + " ", "with one of a hundred");
      must(read(all[i], &one, 8), "read");
    }
  };
}

WORKLOAD(events, shared_with_child) {
  const Pipe p = make_pipe();
  const int epoll = make_epoll();
  add(epoll, p.in, EPOLLIN, 1);
  return in_child([=]() -> Verify {
    return [=] {
      put(p.out, "x");
      expect_ready(epoll, "1:1 ", "the child's");
      drain(p.in);
    };
  });
}
