// Descriptors and descriptions: flags, offsets, what is shared.
#include <sys/file.h>
#include <sys/wait.h>

#include <csignal>

#include "small.h"

namespace {

Verify flag_stays(const Place& place, int flag, const char* name) {
  const int fd = place.open_file("f", O_RDWR | O_CREAT | flag);
  return [=] { expect((must(fcntl(fd, F_GETFL), "fcntl") & flag) == flag, std::string(name) + " is gone"); };
}

}  // namespace

WORKLOAD(files, offset) {
  const int fd = place.open_file("f");
  put(fd, "0123456789");
  must(lseek(fd, 3, SEEK_SET), "lseek");
  return [=] {
    char c = 0;
    expect(read(fd, &c, 1) == 1 && c == '3', "a read begins elsewhere");
    must(lseek(fd, 3, SEEK_SET), "lseek");
  };
}

WORKLOAD(files, offset_beyond_end) {
  const int fd = place.open_file("f");
  must(lseek(fd, off_t{1} << 40, SEEK_SET), "lseek");
  return stays("the offset", [=] { return lseek(fd, 0, SEEK_CUR); });
}

WORKLOAD(files, offset_shared_by_dup) {
  const int one = place.open_file("f");
  const int other = must(fcntl(one, F_DUPFD_CLOEXEC, 100), "dup");
  return [=] {
    must(lseek(one, 77, SEEK_SET), "lseek");
    expect_equal(lseek(other, 0, SEEK_CUR), 77, "the offset of the other");
    must(lseek(one, 5, SEEK_SET), "lseek");
    expect_equal(lseek(other, 0, SEEK_CUR), 5, "the offset of the other");
  };
}

WORKLOAD(files, offset_shared_with_child) {
  const int fd = place.open_file("f");
  const Verify child = in_child([=]() -> Verify { return [=] { must(lseek(fd, 10, SEEK_CUR), "lseek"); }; });
  return [=] {
    const off_t before = lseek(fd, 0, SEEK_CUR);
    child();
    expect_equal(lseek(fd, 0, SEEK_CUR), before + 10, "the offset that a child moves");
    must(lseek(fd, before, SEEK_SET), "lseek");
  };
}

WORKLOAD(files, offset_of_two_openings) {
  const int one = place.open_file("f");
  const int other = place.open_file("f");
  return [=] {
    must(lseek(one, 77, SEEK_SET), "lseek");
    expect_equal(lseek(other, 0, SEEK_CUR), 0, "the offset of the other");
    must(lseek(one, 0, SEEK_SET), "lseek");
  };
}

WORKLOAD(files, append) {
  const int fd = place.open_file("f", O_WRONLY | O_CREAT | O_APPEND);
  return [=] {
    struct stat before {
    }, after{};
    must(fstat(fd, &before), "fstat");
    must(lseek(fd, 0, SEEK_SET), "lseek");
    put(fd, "tail");
    must(fstat(fd, &after), "fstat");
    expect_equal(after.st_size, before.st_size + 4, "the size after a write at the start");
  };
}

WORKLOAD(files, nonblocking) { return flag_stays(place, O_NONBLOCK, "O_NONBLOCK"); }
WORKLOAD(files, synchronous) { return flag_stays(place, O_SYNC, "O_SYNC"); }
WORKLOAD(files, data_synchronous) { return flag_stays(place, O_DSYNC, "O_DSYNC"); }
WORKLOAD(files, no_access_time) { return flag_stays(place, O_NOATIME, "O_NOATIME"); }

WORKLOAD(files, direct) {
  const int fd = open(place.path("d").c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
  if (fd == -1) throw NotHere("the file system has no O_DIRECT");
  return [=] { expect((fcntl(fd, F_GETFL) & O_DIRECT) != 0, "O_DIRECT is gone"); };
}

WORKLOAD(files, read_only) {
  close(place.open_file("f"));
  const int fd = place.open_file("f", O_RDONLY);
  return [=] { expect(write(fd, "x", 1) == -1 && errno == EBADF, "what was opened for reading can be written"); };
}

WORKLOAD(files, write_only) {
  const int fd = place.open_file("f", O_WRONLY | O_CREAT);
  return [=] {
    char c = 0;
    expect(read(fd, &c, 1) == -1 && errno == EBADF, "what was opened for writing can be read");
  };
}

WORKLOAD(files, path_only) {
  close(place.open_file("f"));
  const int fd = place.open_file("f", O_PATH);
  return [=] {
    char c = 0;
    expect((fcntl(fd, F_GETFL) & O_PATH) != 0, "O_PATH is gone");
    expect(read(fd, &c, 1) == -1 && errno == EBADF, "it can be read");
    struct stat s {};
    must(fstat(fd, &s), "fstat");
  };
}

WORKLOAD(files, path_of_folder) {
  const int fd = must(open(place.dir().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC), "open");
  close(place.open_file("f"));
  return [=] { must(faccessat(fd, "f", F_OK, 0), "faccessat"); };
}

WORKLOAD(files, path_of_link) {
  must(symlink("nowhere", place.path("link").c_str()), "symlink");
  const int fd = place.open_file("link", O_PATH | O_NOFOLLOW);
  return [=] {
    char target[20] = {};
    must(readlinkat(fd, "", target, sizeof target - 1), "readlinkat");
    expect(std::strcmp(target, "nowhere") == 0, "the link leads elsewhere");
  };
}

WORKLOAD(files, close_on_exec) {
  const int kept = must(open("/dev/null", O_RDONLY), "open"),
            closed = must(open("/dev/null", O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    expect_equal(fcntl(kept, F_GETFD), 0, "the flags of what stays open at exec");
    expect_equal(fcntl(closed, F_GETFD), FD_CLOEXEC, "the flags of what is closed at exec");
  };
}

WORKLOAD(files, high_number) {
  const int fd = must(fcntl(place.open_file("f"), F_DUPFD_CLOEXEC, 1000), "dup");
  return [=] { expect(fd >= 1000 && fcntl(fd, F_GETFD) != -1, "it is closed"); };
}

WORKLOAD(files, closed_standard_streams) {
  return in_child([]() -> Verify {
    for (int fd = 0; fd < 3; ++fd) close(fd);
    return [] {
      for (int fd = 0; fd < 3; ++fd) expect(fcntl(fd, F_GETFD) == -1, "descriptor " + std::to_string(fd) + " is open");
    };
  });
}

WORKLOAD(files, owner_and_signal) {
  const Pipe p = make_pipe(O_NONBLOCK);
  must(fcntl(p.in, F_SETOWN, getpid()), "fcntl");
  must(fcntl(p.in, F_SETSIG, SIGRTMIN + 2), "fcntl");
  return [=] {
    expect_equal(fcntl(p.in, F_GETOWN), getpid(), "the owner");
    expect_equal(fcntl(p.in, F_GETSIG), SIGRTMIN + 2, "the signal");
  };
}

WORKLOAD(files, asynchronous) {
  static std::atomic<int> fd_told{0};
  const Pipe p = make_pipe(O_NONBLOCK);
  struct sigaction action {};
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  action.sa_sigaction = [](int, siginfo_t* info, void*) { fd_told = info->si_fd; };
  must(sigaction(SIGRTMIN + 6, &action, nullptr), "sigaction");
  must(fcntl(p.in, F_SETSIG, SIGRTMIN + 6), "fcntl");
  must(fcntl(p.in, F_SETOWN, getpid()), "fcntl");
  must(fcntl(p.in, F_SETFL, O_NONBLOCK | O_ASYNC), "fcntl");
  return [=] {
    fd_told = 0;
    put(p.out, "x");
    await([=] { return fd_told == p.in; }, "the signal of a descriptor that can be read");
    drain(p.in);
  };
}
