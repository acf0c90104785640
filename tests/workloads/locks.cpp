// Locks on files: POSIX, flock(2) and open file description locks, of a task and of its child, on files that are mapped
// too. A stranger (a child of the moment) sees whether they are held.
#include <sys/file.h>
#include <sys/wait.h>

#include <string>

#include "workload.h"

using namespace workload;

namespace {

void lock_range(int fd, int command, int type, off_t start, off_t length) {
  struct flock range {};
  range.l_type = static_cast<short>(type);
  range.l_start = start;
  range.l_len = length;
  must(fcntl(fd, command, &range), "fcntl lock");
}

/// The lock that keeps one of that type off the range, as an open file description of our own sees it; F_UNLCK: none.
struct flock seen(const std::string& path, int type, off_t start, off_t length) {
  const int fd = must(open(path.c_str(), O_RDWR | O_CLOEXEC), path.c_str());
  struct flock range {};
  range.l_type = static_cast<short>(type);
  range.l_start = start;
  range.l_len = length;
  must(fcntl(fd, F_OFD_GETLK, &range), "F_OFD_GETLK");
  close(fd);
  return range;
}

bool flock_fails(const std::string& path, int operation) {
  const int fd = must(open(path.c_str(), O_RDWR | O_CLOEXEC), path.c_str());
  const bool failed = flock(fd, operation | LOCK_NB) == -1 && errno == EWOULDBLOCK;
  close(fd);
  return failed;
}

/// In a child: closing a descriptor of a file would drop our own POSIX locks on it.
void in_stranger(const std::function<void()>& look) {
  int result[2];
  must(pipe2(result, O_CLOEXEC), "pipe");
  const pid_t pid = must(fork(), "fork");
  if (pid == 0) {
    std::string text;
    try {
      look();
    } catch (const std::exception& e) {
      text = e.what();
    }
    _exit(write(result[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(result[1]);
  char text[512] = {};
  const ssize_t n = read(result[0], text, sizeof text - 1);
  close(result[0]);
  int status = 0;
  must(waitpid(pid, &status, 0), "waitpid");
  expect(n == 0 && status == 0, text);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const std::string ranges = w.path("ranges"), whole = w.path("whole"), described = w.path("described");
        const int posix = must(open(ranges.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
        must(ftruncate(posix, 8192), "ftruncate");
        // Databases map what they lock.
        void* mapped = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, posix, 0);
        expect(mapped != MAP_FAILED, "mmap failed");
        lock_range(posix, F_SETLK, F_WRLCK, 100, 50);
        lock_range(posix, F_SETLK, F_RDLCK, 4000, 0);
        const int flocked = must(open(whole.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
        must(flock(flocked, LOCK_EX), "flock");
        const int description = must(open(described.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
        lock_range(description, F_OFD_SETLK, F_WRLCK, 0, 0);
        auto* ready = shared_memory<std::atomic<uint32_t>>();
        const pid_t parent = getpid();
        const pid_t child = must(fork(), "fork");
        if (child == 0) {
          // It shares two locks and takes one.
          lock_range(posix, F_SETLK, F_WRLCK, 1000, 1);
          *ready = 1;
          while (getppid() == parent) sleep_ms(20);
          _exit(0);
        }
        await([&] { return *ready == 1; }, "the child's lock");
        w.serve([&] {
          in_stranger([&] {
            struct flock found = seen(ranges, F_RDLCK, 0, 1000);
            expect(found.l_type == F_WRLCK && found.l_start == 100 && found.l_len == 50, "the write lock is not there");
            expect_equal(found.l_pid, parent, "owner of the write lock");
            found = seen(ranges, F_WRLCK, 5000, 1);
            expect(found.l_type == F_RDLCK && found.l_start == 4000 && found.l_len == 0, "the read lock is not there");
            expect(seen(ranges, F_RDLCK, 5000, 1).l_type == F_UNLCK, "the read lock keeps readers off");
            found = seen(ranges, F_RDLCK, 900, 200);
            expect_equal(found.l_pid, child, "owner of the child's lock");
            expect(flock_fails(whole, LOCK_SH), "the flock is not there");
            expect(seen(described, F_RDLCK, 1 << 20, 1).l_type == F_WRLCK, "the description's lock is not there");
          });
        });
      },
      argv[0]);
}
