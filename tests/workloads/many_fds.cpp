// NUMBER (default 5000) descriptors: files at different offsets, eventfds with different values, pipes with data.
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <algorithm>
#include <vector>

#include "workload.h"

using namespace workload;

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const auto count = static_cast<size_t>(w.number(0, 5000));
        rlimit limit{};
        must(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
        limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, count + 100);
        must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
        const std::string file = w.path("file");
        std::vector<int> fds;
        while (fds.size() + 4 <= count) {
          const auto i = static_cast<off_t>(fds.size());
          const int a = must(open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644), "open");
          must(lseek(a, i, SEEK_SET), "lseek");
          const int b = must(eventfd(static_cast<unsigned>(i + 1), EFD_NONBLOCK), "eventfd");
          int p[2];
          must(pipe2(p, O_CLOEXEC), "pipe2");
          expect(write(p[1], &i, sizeof i) == sizeof i, "write to pipe");
          for (int fd : {a, b, p[0], p[1]}) fds.push_back(fd);
        }
        w.serve([&] {
          for (size_t k = 0; k + 4 <= fds.size(); k += 4) {
            const auto i = static_cast<off_t>(k);
            expect_equal(lseek(fds[k], 0, SEEK_CUR), i, "offset");
            uint64_t value = 0;
            expect(read(fds[k + 1], &value, sizeof value) == sizeof value, "eventfd is empty");
            expect_equal(value, static_cast<uint64_t>(i + 1), "eventfd");
            expect(write(fds[k + 1], &value, sizeof value) == sizeof value, "write to eventfd");
            off_t got = -1;
            expect(read(fds[k + 2], &got, sizeof got) == sizeof got, "pipe is empty");
            expect_equal(got, i, "pipe");
            expect(write(fds[k + 3], &got, sizeof got) == sizeof got, "write to pipe");
          }
        });
      },
      argv[0]);
}
