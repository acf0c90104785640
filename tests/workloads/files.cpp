// Regular files, directories and character devices: offsets, flags, sharing of descriptions between descriptors and
// tasks, close-on-exec, deleted files, high descriptor numbers.
#include <sys/wait.h>

#include <string>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

int open_file(const std::string& path, int flags) { return must(open(path.c_str(), flags, 0644), path.c_str()); }

void expect_flags(int fd, int status, int descriptor, const std::string& what) {
  expect_equal(fcntl(fd, F_GETFL) & ~0100000, status, what + ": status flags");
  expect_equal(fcntl(fd, F_GETFD), descriptor, what + ": descriptor flags");
}

std::string link_of(int fd) {
  char text[4096] = {};
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  must(readlink(path.c_str(), text, sizeof text - 1), "readlink");
  return text;
}

struct Shared {
  std::atomic<uint32_t> asked, answered;
  std::atomic<int64_t> moved_to;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const std::string body(5000, 'b');
        const int plain = open_file(w.path("plain"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC);
        expect(write(plain, body.data(), body.size()) == 5000, "write failed");
        must(lseek(plain, 1234, SEEK_SET), "lseek");
        const int duplicate = must(fcntl(plain, F_DUPFD, 700), "F_DUPFD");
        const int reader = open_file(w.path("plain"), O_RDONLY | O_NOATIME);
        const int append = open_file(w.path("appended"), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
        const int synced = open_file(w.path("synced"), O_WRONLY | O_CREAT | O_DSYNC | O_NONBLOCK);
        const int deleted = open_file(w.path("deleted"), O_RDWR | O_CREAT | O_TRUNC);
        expect(write(deleted, body.data(), 3000) == 3000, "write failed");
        must(unlink(w.path("deleted").c_str()), "unlink");
        const int folder = open_file(w.dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        const int by_path = open_file(w.path("plain"), O_PATH);
        std::vector<int> devices;
        for (const char* name : {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"})
          devices.push_back(open_file(name, O_RDWR | O_CLOEXEC));
        auto* shared = shared_memory<Shared>();
        const pid_t parent = getpid();
        if (must(fork(), "fork") == 0) {
          while (getppid() == parent) {
            if (shared->asked != shared->answered) {
              shared->moved_to = lseek(plain, 17, SEEK_CUR);
              shared->answered = shared->asked.load();
            }
            sleep_ms(3);
          }
          _exit(0);
        }
        std::vector<std::string> links;
        for (int fd : {plain, duplicate, reader, append, synced, folder, by_path}) links.push_back(link_of(fd));
        int64_t appended = 0;
        w.serve([&] {
          expect_equal(lseek(plain, 0, SEEK_CUR), 1234, "offset");
          expect_equal(lseek(duplicate, 0, SEEK_CUR), 1234, "offset of the duplicate");
          expect_equal(lseek(reader, 0, SEEK_CUR), 0, "offset of another description");
          const uint32_t n = ++shared->asked;
          await([&] { return shared->answered == n; }, "the child");
          expect_equal(shared->moved_to.load(), 1251, "offset moved by the child");
          expect_equal(lseek(duplicate, 0, SEEK_CUR), 1251, "offset shared with the child");
          must(lseek(duplicate, 1234, SEEK_SET), "lseek");
          expect_flags(plain, O_RDWR, FD_CLOEXEC, "plain file");
          expect_flags(duplicate, O_RDWR, 0, "duplicate");
          expect_flags(reader, O_RDONLY | O_NOATIME, 0, "reader");
          expect_flags(append, O_WRONLY | O_APPEND, 0, "O_APPEND file");
          expect_flags(synced, O_WRONLY | O_DSYNC | O_NONBLOCK, 0, "O_DSYNC file");
          size_t i = 0;
          for (int fd : {plain, duplicate, reader, append, synced, folder, by_path}) {
            expect(link_of(fd) == links[i], "descriptor " + std::to_string(fd) + " is now " + link_of(fd));
            ++i;
          }
          must(lseek(append, 0, SEEK_SET), "lseek");
          expect(write(append, "line\n", 5) == 5, "append failed");
          appended += 5;
          struct stat st {};
          must(fstat(append, &st), "fstat");
          expect_equal(st.st_size, appended, "size of the O_APPEND file");
          must(fstat(deleted, &st), "fstat");
          expect_equal(st.st_nlink, 0U, "links of the deleted file");
          expect_equal(st.st_size, 3000, "size of the deleted file");
          expect_equal(lseek(deleted, 0, SEEK_CUR), 3000, "offset of the deleted file");
          char byte = 0;
          expect(pread(deleted, &byte, 1, 2999) == 1 && byte == 'b', "contents of the deleted file");
          const int inside = must(openat(folder, "plain", O_RDONLY | O_CLOEXEC), "openat in the directory");
          close(inside);
          expect(write(devices[0], "x", 1) == 1 && read(devices[0], &byte, 1) == 0, "/dev/null");
          expect(read(devices[1], &byte, 1) == 1 && byte == 0, "/dev/zero");
          expect(write(devices[2], "x", 1) == -1 && errno == ENOSPC, "/dev/full");
          expect(read(devices[3], &byte, 1) == 1 && read(devices[4], &byte, 1) == 1, "random devices");
        });
      },
      argv[0]);
}
