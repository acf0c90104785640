// Pipes and FIFOs with data in them, closed ends, packets, sizes and flags; and a running pipeline of three processes
// that must neither lose nor repeat a number.
#include <sys/wait.h>

#include <csignal>
#include <string>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kBig = size_t{256} * 1024;

struct Line {
  std::atomic<uint64_t> received{0};
  std::atomic<uint64_t> wrong{0};
};

struct Pipe {
  int read_end = -1, write_end = -1;
};

Pipe make_pipe(int flags = O_CLOEXEC) {
  int p[2];
  must(pipe2(p, flags), "pipe2");
  return {p[0], p[1]};
}

void put(int fd, const void* data, size_t n) {
  expect(write(fd, data, n) == static_cast<ssize_t>(n), std::string("write to pipe: ") + std::strerror(errno));
}

void put_pattern(int fd, size_t n, uint64_t salt) {
  std::vector<uint8_t> data(n);
  fill_pattern(data.data(), n, salt);
  put(fd, data.data(), n);
}

void take_pattern(int fd, size_t n, uint64_t salt, const std::string& what) {
  std::vector<uint8_t> data(n);
  for (size_t got = 0; got < n;) {
    const ssize_t r = read(fd, data.data() + got, n - got);
    if (r <= 0)
      throw std::runtime_error(what + " holds only " + std::to_string(got) + " of " + std::to_string(n) + " bytes");
    got += static_cast<size_t>(r);
  }
  expect_pattern(data.data(), n, salt, what);
}

void pass_on(int from, int to) {
  uint64_t n = 0;
  while (read(from, &n, sizeof n) == sizeof n)
    if (write(to, &n, sizeof n) != sizeof n) break;
  _exit(0);
}

/// producer | filter | consumer, each a process; the consumer looks for gaps.
void start_pipeline(Line& line) {
  const Pipe a = make_pipe(), b = make_pipe();
  const pid_t parent = getpid();
  if (must(fork(), "fork") == 0) {
    for (uint64_t n = 1; getppid() == parent; ++n) {
      if (write(a.write_end, &n, sizeof n) != sizeof n) _exit(0);
      if (n % 64 == 0) sleep_ms(1);
    }
    _exit(0);
  }
  if (must(fork(), "fork") == 0) {
    close(a.write_end);
    close(b.read_end);
    pass_on(a.read_end, b.write_end);
  }
  if (must(fork(), "fork") == 0) {
    close(b.write_end);
    close(a.write_end);
    close(a.read_end);
    uint64_t n = 0;
    while (read(b.read_end, &n, sizeof n) == sizeof n) {
      if (n != line.received + 1) ++line.wrong;
      line.received = n;
    }
    _exit(0);
  }
  for (int fd : {a.read_end, a.write_end, b.read_end, b.write_end}) close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        struct sigaction ignore = {};
        ignore.sa_handler = SIG_IGN;
        sigaction(SIGPIPE, &ignore, nullptr);
        auto* line = shared_memory<Line>();
        start_pipeline(*line);
        const Pipe half = make_pipe(), nonblocking = make_pipe(O_NONBLOCK), big = make_pipe(),
                   packets = make_pipe(O_DIRECT);
        put_pattern(half.write_end, 10'000, 1);
        put_pattern(nonblocking.write_end, 5, 2);
        must(fcntl(big.write_end, F_SETPIPE_SZ, kBig), "F_SETPIPE_SZ");
        put_pattern(big.write_end, kBig, 3);
        const auto put_packets = [&] {
          for (size_t n : {10, 100, 1000}) put_pattern(packets.write_end, n, n);
        };
        put_packets();
        Pipe no_writer = make_pipe(), no_reader = make_pipe();
        put_pattern(no_writer.write_end, 300, 4);
        close(no_writer.write_end);
        close(no_reader.read_end);
        const std::string name = w.path("fifo");
        unlink(name.c_str());
        must(mkfifo(name.c_str(), 0600), "mkfifo");
        const int fifo = must(open(name.c_str(), O_RDWR | O_CLOEXEC), "open fifo");
        put_pattern(fifo, 2'000, 5);
        bool no_writer_drained = false;
        w.serve([&] {
          take_pattern(half.read_end, 10'000, 1, "pipe");
          put_pattern(half.write_end, 10'000, 1);
          take_pattern(nonblocking.read_end, 5, 2, "non-blocking pipe");
          char c = 0;
          expect(read(nonblocking.read_end, &c, 1) == -1 && errno == EAGAIN,
                 "a non-blocking pipe blocks or has more data");
          put_pattern(nonblocking.write_end, 5, 2);
          expect_equal(fcntl(big.read_end, F_GETPIPE_SZ), int{kBig}, "pipe size");
          take_pattern(big.read_end, kBig, 3, "full pipe");
          put_pattern(big.write_end, kBig, 3);
          for (size_t n : {10, 100, 1000}) {
            std::vector<uint8_t> data(4096);
            expect_equal(read(packets.read_end, data.data(), data.size()), static_cast<ssize_t>(n), "packet's length");
            expect_pattern(data.data(), n, n, "packet");
          }
          put_packets();
          if (!no_writer_drained) take_pattern(no_writer.read_end, 300, 4, "pipe without writer");
          no_writer_drained = true;
          expect(read(no_writer.read_end, &c, 1) == 0, "a pipe without writer has no end of file");
          expect(write(no_reader.write_end, &c, 1) == -1 && errno == EPIPE, "a pipe without reader gives no EPIPE");
          take_pattern(fifo, 2'000, 5, "FIFO");
          put_pattern(fifo, 2'000, 5);
          const uint64_t received = line->received;
          await([&] { return line->received > received + 10; }, "the pipeline to go on");
          expect_equal(line->wrong.load(), 0U, "numbers lost or repeated in the pipeline");
        });
      },
      argv[0]);
}
