// Locks on files: without --file-locks they are refused.
#include <sys/file.h>

#include "small.h"

namespace {

struct flock whole(short type) {
  struct flock lock {};
  lock.l_type = type;
  return lock;
}

}  // namespace

WORKLOAD(locks, record) {
  const int fd = place.open_file("f");
  struct flock lock = whole(F_WRLCK);
  must(fcntl(fd, F_SETLK, &lock), "fcntl");
  return in_child([=]() -> Verify {
    return [=] {
      struct flock found = whole(F_WRLCK);
      must(fcntl(fd, F_GETLK, &found), "fcntl");
      expect_equal(found.l_type, F_WRLCK, "the lock that another sees");
      expect_equal(found.l_pid, getppid(), "its owner");
    };
  });
}

WORKLOAD(locks, whole_file) {
  const int fd = place.open_file("f");
  must(flock(fd, LOCK_EX), "flock");
  const std::string path = place.path("f");
  return [=] {
    const int other = must(open(path.c_str(), O_RDWR | O_CLOEXEC), "open");
    const bool free = flock(other, LOCK_EX | LOCK_NB) == 0;
    close(other);
    expect(!free, "the lock is gone");
  };
}

WORKLOAD(locks, of_description) {
  const int fd = place.open_file("f");
  struct flock lock = whole(F_RDLCK);
  must(fcntl(fd, F_OFD_SETLK, &lock), "fcntl");
  const std::string path = place.path("f");
  return [=] {
    const int other = must(open(path.c_str(), O_RDWR | O_CLOEXEC), "open");
    struct flock reads = whole(F_RDLCK), writes = whole(F_WRLCK);
    const bool shared = fcntl(other, F_OFD_SETLK, &reads) == 0, free = fcntl(other, F_OFD_SETLK, &writes) == 0;
    close(other);
    expect(shared, "a lock for reading is not shared");
    expect(!free, "the lock is gone");
  };
}
