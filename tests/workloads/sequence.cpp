// Appends a line "EPOCH NUMBER TIME" every millisecond to the O_APPEND file `sequence`: two running copies show as a
// repeated number, a restart of an old state as a number that goes back. TIME is CLOCK_REALTIME in ns, EPOCH the number
// of the time namespace the writer sees itself in, which differs between hosts.
//
//     sequence DIR [THREADS [PORT [MIB [LOCKS]]]]
//
// THREADS others count beside it. With a PORT it listens there, on all addresses, and on the Unix socket DIR/s: who
// connects is told the newest number. With LOCKS it has some on `sequence`, which others must not get. Of MIB of
// memory it writes a page with each number, and knows every byte.
#include <netinet/in.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

int listen_tcp(uint16_t port) {
  const int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const int on = 1;
  must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind");
  must(listen(fd, 16), "listen");
  return fd;
}

/// By flock(2), and as a POSIX lock of the process.
void lock_whole(int fd) {
  must(flock(fd, LOCK_EX | LOCK_NB), "flock");
  struct flock whole {};
  whole.l_type = F_WRLCK;
  must(fcntl(fd, F_SETLK, &whole), "fcntl lock");
}

/// A child sees what strangers do. (Closing a descriptor of the file would drop our own POSIX lock.)
void expect_locked(const std::string& path) {
  const pid_t pid = must(fork(), "fork");
  if (pid == 0) {
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    struct flock whole {};
    whole.l_type = F_WRLCK;
    const bool flock_held = flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK;
    const bool posix_held = fcntl(fd, F_GETLK, &whole) == 0 && whole.l_type == F_WRLCK && whole.l_pid == getppid();
    _exit((flock_held ? 0 : 1) + (posix_held ? 0 : 2));
  }
  int status = 0;
  must(waitpid(pid, &status, 0), "waitpid");
  expect(status == 0, "its locks are not held: status " + std::to_string(status));
}

int listen_unix(const std::string& path) {
  const int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  expect(path.size() < sizeof a.sun_path, "too long for a socket: " + path);
  std::memcpy(a.sun_path, path.c_str(), path.size());
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind");
  must(listen(fd, 16), "listen");
  return fd;
}

[[noreturn]] void answer(int tcp, int local, const std::atomic<uint64_t>& number) {
  std::array<pollfd, 2> p{pollfd{tcp, POLLIN, 0}, pollfd{local, POLLIN, 0}};
  for (;;) {
    if (poll(p.data(), p.size(), -1) <= 0) continue;
    for (const pollfd& one : p) {
      if (one.revents == 0) continue;
      const int peer = accept4(one.fd, nullptr, nullptr, SOCK_CLOEXEC);
      if (peer == -1) continue;
      const std::string text = std::to_string(number.load()) + "\n";
      (void)!send(peer, text.data(), text.size(), MSG_NOSIGNAL);
      close(peer);
    }
  }
}

/// Threads that count, one in each way to wait.
struct Counters {
  std::vector<std::unique_ptr<std::atomic<uint64_t>>> counts;
  std::vector<uint64_t> seen;

  explicit Counters(long threads) : seen(static_cast<size_t>(threads)) {
    for (long i = 0; i < threads; ++i) {
      counts.push_back(std::make_unique<std::atomic<uint64_t>>(0));
      std::thread([count = counts.back().get(), i] {
        for (;; ++*count) {
          if (i % 2 == 0) {
            sleep_ms(2);
          } else {
            poll(nullptr, 0, 2);
          }
        }
      }).detach();
    }
  }
  void verify() {
    for (size_t i = 0; i < counts.size(); ++i) {
      await([&] { return counts[i]->load() > seen[i]; }, "thread " + std::to_string(i) + " counts on");
      seen[i] = counts[i]->load();
    }
  }
};

/// Pages that each begin with how often they were written, and go on with a pattern.
class Pages {
 public:
  explicit Pages(size_t mib) : count_(mib << 8) {
    if (count_ == 0) return;
    void* p = mmap(nullptr, count_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expect(p != MAP_FAILED, "mmap of the pages failed");
    base_ = static_cast<uint8_t*>(p);
    for (size_t i = 0; i < count_; ++i) fill_pattern(base_ + i * kPage + sizeof(uint64_t), kPage - sizeof(uint64_t), i);
  }
  void write_next() {
    if (count_ != 0) ++*written(turns_++ % count_);
  }
  void verify() const {
    for (size_t i = 0; i < count_; ++i) {
      const std::string what = "page " + std::to_string(i);
      expect_equal(*written(i), (turns_ + count_ - 1 - i) / count_,
                   "the number of times that " + what + " was written");
      expect_pattern(base_ + i * kPage + sizeof(uint64_t), kPage - sizeof(uint64_t), i, what);
    }
  }

 private:
  static constexpr size_t kPage = 4096;

  uint64_t* written(size_t i) const { return reinterpret_cast<uint64_t*>(base_ + i * kPage); }

  size_t count_;
  uint8_t* base_ = nullptr;
  uint64_t turns_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int out = must(open(w.path("sequence").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666), "open");
        const bool locks = w.number(3, 0) != 0;
        if (locks) lock_whole(out);
        std::atomic<uint64_t> number = 0;
        const auto append = [&] {
          struct stat st {};
          if (stat("/proc/self/ns/time", &st) == -1) st.st_ino = 0;
          char line[96];
          const uint64_t next = number + 1;
          const int n =
              std::snprintf(line, sizeof line, "%llu %llu %lld\n", static_cast<unsigned long long>(st.st_ino),
                            static_cast<unsigned long long>(next), static_cast<long long>(now_ns(CLOCK_REALTIME)));
          expect(write(out, line, static_cast<size_t>(n)) == n, "append failed");
          number = next;
        };
        Counters counters(w.number(0, 0));
        Pages pages(static_cast<size_t>(w.number(2, 0)));
        if (const long port = w.number(1, 0); port != 0) {
          const int tcp = listen_tcp(static_cast<uint16_t>(port)), local = listen_unix(w.path("s"));
          std::thread([&, tcp, local] { answer(tcp, local, number); }).detach();
        }
        uint64_t verified = 0;
        std::string failure;
        const auto verify = [&] {
          expect(failure.empty(), failure);
          // `unlocked` is there: they were lost, and that was told.
          if (locks && access(w.path("unlocked").c_str(), F_OK) != 0) expect_locked(w.path("sequence"));
          expect(number > verified, "nothing was appended since the last check");
          verified = number;
          counters.verify();
          pages.verify();
        };
        append();
        w.serve(verify, [&] {
          try {
            append();
            pages.write_next();
          } catch (const std::exception& e) {
            failure = e.what();
          }
          sleep_ms(1);
        });
      },
      argv[0]);
}
