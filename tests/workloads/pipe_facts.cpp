// Pipes with an owner and a mode of their own, and a FIFO whose reader has never seen a writer: no hang-up.
#include <poll.h>

#include "workload.h"

using namespace workload;

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        int p[2];
        must(pipe2(p, O_CLOEXEC), "pipe2");
        must(fchown(p[0], 33, 34), "fchown");
        must(fchmod(p[1], 0642), "fchmod");
        const auto open_fifo = [](const std::string& path, int flags) {
          return must(open(path.c_str(), flags | O_NONBLOCK | O_CLOEXEC), "open a FIFO");
        };
        const std::string name = w.path("fifo");
        must(mkfifo(name.c_str(), 0640), "mkfifo");
        const int left = open_fifo(name, O_RDONLY);
        const int writer = open_fifo(name, O_WRONLY);
        must(write(writer, "data", 4), "write");
        close(writer);
        const int waiting = open_fifo(name, O_RDONLY);
        const auto events = [](int fd) {
          pollfd e{fd, POLLIN, 0};
          poll(&e, 1, 0);
          return e.revents;
        };
        bool drained = false;
        w.serve([&] {
          struct stat st {};
          must(fstat(p[1], &st), "fstat");
          expect(st.st_uid == 33 && st.st_gid == 34, "the pipe's owner is lost");
          expect_equal(st.st_mode & 07777, 0642U, "the pipe's mode");
          char data[8];
          if (!drained) expect_equal(read(waiting, data, sizeof data), ssize_t{4}, "what waits in the FIFO");
          drained = true;
          expect_equal(events(waiting), 0, "what poll tells a reader that saw no writer");
          expect_equal(events(left), short{POLLHUP}, "what poll tells a reader whose writer has gone");
          expect_equal(read(waiting, data, sizeof data), ssize_t{0}, "the end of the FIFO");
        });
      },
      argv[0]);
}
