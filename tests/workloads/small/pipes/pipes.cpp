// Pipes, by what one can do with them.
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <csignal>
#include <utility>

#include "small.h"

WORKLOAD(pipes, with_data) {
  const Pipe p = make_pipe();
  put(p.out, "in the pipe");
  return [=] {
    expect(drain(p.in) == "in the pipe", "what was in the pipe differs");
    put(p.out, "in the pipe");
  };
}

WORKLOAD(pipes, empty) {
  const Pipe p = make_pipe(O_NONBLOCK);
  return [=] {
    char c = 0;
    expect(read(p.in, &c, 1) == -1 && errno == EAGAIN, "something is in the pipe");
  };
}

WORKLOAD(pipes, full) {
  const Pipe p = make_pipe(O_NONBLOCK);
  const auto to_the_brim = [=] {
    size_t n = 0;
    char byte = 0;
    while (write(p.out, &(byte = static_cast<char>(pattern(n, 1))), 1) == 1) ++n;
    return n;
  };
  const size_t room = to_the_brim();
  return [=] {
    expect(write(p.out, "x", 1) == -1 && errno == EAGAIN, "there is room in the pipe");
    size_t n = 0;
    for (char c = 0; read(p.in, &c, 1) == 1; ++n)
      if (c != static_cast<char>(pattern(n, 1))) throw std::runtime_error("byte " + std::to_string(n) + " differs");
    expect_equal(n, room, "what was in the pipe");
    expect_equal(to_the_brim(), room, "what goes into the pipe");
  };
}

WORKLOAD(pipes, without_writer) {
  const Pipe p = make_pipe();
  put(p.out, "rest");
  close(p.out);
  const auto first = std::make_shared<bool>(true);
  return [=] {
    if (std::exchange(*first, false)) expect(drain(p.in) == "rest", "what was left differs");
    char c = 0;
    expect(read(p.in, &c, 1) == 0, "a pipe without writers does not end");
  };
}

WORKLOAD(pipes, rest_without_writer) {
  return in_child([]() -> Verify {
    const Pipe p = make_pipe(O_NONBLOCK);
    put(p.out, "rest");
    close(p.out);
    return [=] {
      int n = 0;
      must(ioctl(p.in, FIONREAD, &n), "FIONREAD");
      expect_equal(n, 4, "bytes in a pipe without writers");
    };
  });
}

WORKLOAD(pipes, without_reader) {
  return in_child([]() -> Verify {
    signal(SIGPIPE, SIG_IGN);
    const Pipe p = make_pipe();
    close(p.in);
    return [=] { expect(write(p.out, "x", 1) == -1 && errno == EPIPE, "a pipe without readers takes bytes"); };
  });
}

WORKLOAD(pipes, packets) {
  const Pipe p = make_pipe(O_DIRECT | O_NONBLOCK);
  const auto send = [=] {
    put(p.out, "one");
    put(p.out, "two and more");
    put(p.out, "3");
  };
  const auto expect_packets = [=] {
    for (const char* want : {"one", "two and more", "3"})
      expect(drain(p.in) == want, std::string("packet ") + want + " differs");
  };
  send();
  return [=] {
    expect_packets();
    send();
    expect_packets();
    send();
  };
}

WORKLOAD(pipes, large) {
  const Pipe p = make_pipe();
  must(fcntl(p.out, F_SETPIPE_SZ, 1 << 20), "F_SETPIPE_SZ");
  return stays("the room of a pipe", [=] { return fcntl(p.in, F_GETPIPE_SZ); });
}

WORKLOAD(pipes, small) {
  const Pipe p = make_pipe();
  must(fcntl(p.out, F_SETPIPE_SZ, 4096), "F_SETPIPE_SZ");
  return stays("the room of a pipe", [=] { return fcntl(p.in, F_GETPIPE_SZ); });
}

WORKLOAD(pipes, one_end_nonblocking) {
  const Pipe p = make_pipe();
  must(fcntl(p.out, F_SETFL, O_NONBLOCK), "fcntl");
  return [=] {
    expect_equal(fcntl(p.in, F_GETFL) & O_NONBLOCK, 0, "O_NONBLOCK of the reading end");
    expect_equal(fcntl(p.out, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK of the writing end");
  };
}

WORKLOAD(pipes, between_processes) {
  const Pipe there = make_pipe(), back = make_pipe();
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    close(there.out);
    close(back.in);
    for (char c = 0; read(there.in, &c, 1) == 1;) put(back.out, std::string(1, static_cast<char>(c + 1)));
    std::_Exit(0);
  }
  close(there.in);
  close(back.out);
  return [=] {
    put(there.out, "a");
    char c = 0;
    expect(read(back.in, &c, 1) == 1 && c == 'b', "the child does not answer");
  };
}

WORKLOAD(pipes, opened_again) {
  const Pipe p = make_pipe();
  const int other =
      must(open(("/proc/self/fd/" + std::to_string(p.in)).c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC), "open");
  return [=] {
    expect_equal(fcntl(p.in, F_GETFL) & O_NONBLOCK, 0, "O_NONBLOCK of the first end");
    put(p.out, "x");
    char c = 0;
    expect(read(other, &c, 1) == 1 && c == 'x', "the other end does not give what is written");
  };
}

WORKLOAD(pipes, both_ways) {
  const Pipe p = make_pipe();
  const int both = must(open(("/proc/self/fd/" + std::to_string(p.in)).c_str(), O_RDWR | O_CLOEXEC), "open");
  close(p.in);
  close(p.out);
  return [=] {
    put(both, "both");
    expect(drain(both) == "both", "an end for both directions is another");
  };
}

WORKLOAD(pipes, fifo) {
  must(mkfifo(place.path("fifo").c_str(), 0640), "mkfifo");
  const int in = place.open_file("fifo", O_RDONLY | O_NONBLOCK), out = place.open_file("fifo", O_WRONLY);
  put(out, "in the fifo");
  return [=] {
    expect(drain(in) == "in the fifo", "what was in the FIFO differs");
    put(out, "in the fifo");
    struct stat s {};
    must(fstat(in, &s), "fstat");
    expect(S_ISFIFO(s.st_mode) && (s.st_mode & 0777) == 0640, "the mode is another");
  };
}

// Hosts that are namespaces of one kernel have one pipe for both.
WORKLOAD(pipes, named_fifo) {
  must(mkfifo("named-fifo", 0600), "mkfifo");
  const int in = must(open("named-fifo", O_RDONLY | O_NONBLOCK), "open"),
            out = must(open("named-fifo", O_WRONLY), "open");
  put(out, "in the fifo");
  return [=] {
    expect(drain(in) == "in the fifo", "what was in the FIFO differs");
    put(out, "in the fifo");
  };
}

WORKLOAD(pipes, named_fifo_without_writers) {
  must(mkfifo("named-fifo-read", 0600), "mkfifo");
  const int in = must(open("named-fifo-read", O_RDONLY | O_NONBLOCK), "open");
  must(fcntl(in, F_SETPIPE_SZ, 1 << 18), "F_SETPIPE_SZ");
  return [=] {
    pollfd p{in, POLLIN, 0};
    expect(poll(&p, 1, 0) == 0, "it has heard of a writer");
    expect_equal(fcntl(in, F_GETPIPE_SZ), 1 << 18, "the FIFO's size");
  };
}

WORKLOAD(pipes, spliced) {
  const Pipe one = make_pipe(), two = make_pipe();
  put(one.out, "spliced");
  must(tee(one.in, two.out, 100, SPLICE_F_NONBLOCK), "tee");
  return [=] {
    expect(drain(one.in) == "spliced" && drain(two.in) == "spliced", "what was spliced differs");
    put(one.out, "spliced");
    must(tee(one.in, two.out, 100, SPLICE_F_NONBLOCK), "tee");
  };
}
