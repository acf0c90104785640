// eventfd(2), timerfd_create(2), memfd_create(2).
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "small.h"

namespace {

uint64_t take(int fd) {
  uint64_t n = 0;
  return read(fd, &n, sizeof n) == sizeof n ? n : 0;
}

void give(int fd, uint64_t n) { must(write(fd, &n, sizeof n), "write"); }

/// What seals say, and what they forbid.
int sealed_memory(int seals) {
  const int fd = must(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
  put(fd, std::string(2 * kPage, 's'));
  must(fcntl(fd, F_ADD_SEALS, seals), "F_ADD_SEALS");
  return fd;
}

Verify seals_stay(int fd) {
  return stays("the seals", [=] { return fcntl(fd, F_GET_SEALS); });
}

}  // namespace

WORKLOAD(events, counter) {
  const int fd = must(eventfd(41, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
  return [=] {
    expect_equal(take(fd), uint64_t{41}, "the counter");
    expect_equal(take(fd), uint64_t{0}, "the counter when it was read");
    give(fd, 41);
  };
}

WORKLOAD(events, counter_at_zero) {
  const int fd = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
  return [=] { expect_equal(take(fd), uint64_t{0}, "the counter"); };
}

WORKLOAD(events, counter_full) {
  const int fd = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
  give(fd, ~uint64_t{1});
  return [=] {
    const uint64_t one = 1;
    expect(write(fd, &one, 8) == -1 && errno == EAGAIN, "a full counter takes more");
    expect_equal(take(fd), ~uint64_t{1}, "the counter");
    give(fd, ~uint64_t{1});
  };
}

WORKLOAD(events, semaphore) {
  const int fd = must(eventfd(3, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE), "eventfd");
  return [=] {
    for (int i = 0; i < 3; ++i) expect_equal(take(fd), uint64_t{1}, "what a semaphore gives");
    expect_equal(take(fd), uint64_t{0}, "what an empty semaphore gives");
    give(fd, 3);
  };
}

WORKLOAD(events, counter_shared) {
  const int fd = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
  const Verify child = in_child([=]() -> Verify { return [=] { give(fd, 6); }; });
  return [=] {
    child();
    expect_equal(take(fd), uint64_t{6}, "what the child has given");
  };
}

WORKLOAD(events, timer) {
  const int fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create");
  const itimerspec span{{77, 5}, {5000, 0}};
  must(timerfd_settime(fd, 0, &span, nullptr), "timerfd_settime");
  return [=] {
    itimerspec left{};
    must(timerfd_gettime(fd, &left), "timerfd_gettime");
    expect(left.it_value.tv_sec > 0 && left.it_value.tv_sec <= 5000,
           "it is due in " + std::to_string(left.it_value.tv_sec) + " s");
    expect(left.it_interval.tv_sec == 77 && left.it_interval.tv_nsec == 5, "its interval is another");
    expect_equal(take(fd), uint64_t{0}, "how often it expired");
  };
}

WORKLOAD(events, memory_file) {
  const int fd = must(memfd_create("a memory file", MFD_CLOEXEC), "memfd_create");
  must(ftruncate(fd, 1 << 24), "ftruncate");
  must(pwrite(fd, "far", 3, 1 << 23), "pwrite");
  return [=] {
    struct stat s {};
    must(fstat(fd, &s), "fstat");
    expect(s.st_size == 1 << 24 && s.st_blocks <= 16, "its size or its holes are others");
    char text[4] = {};
    must(pread(fd, text, 3, 1 << 23), "pread");
    expect(std::strcmp(text, "far") == 0, "its content differs");
    char name[200] = {};
    must(readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), name, sizeof name - 1), "readlink");
    expect(std::string(name).find("a memory file") != std::string::npos, "its name is " + std::string(name));
  };
}

WORKLOAD(events, memory_file_mode) {
  const int fd = must(memfd_create("mode", MFD_CLOEXEC), "memfd_create");
  must(fchmod(fd, 0640), "fchmod");
  must(fchown(fd, 12, 34), "fchown");
  return [=] {
    struct stat s {};
    must(fstat(fd, &s), "fstat");
    expect_equal(s.st_mode & 07777, mode_t{0640}, "the mode");
    expect(s.st_uid == 12 && s.st_gid == 34, "the owner is another");
  };
}

WORKLOAD(events, memory_file_not_executable) {
  const int fd = memfd_create("noexec", MFD_CLOEXEC | 8U /* MFD_NOEXEC_SEAL */);
  if (fd == -1) throw NotHere("the kernel has no MFD_NOEXEC_SEAL");
  return seals_stay(fd);
}

WORKLOAD(events, seal_none) {
  return seals_stay(must(memfd_create("free", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create"));
}
WORKLOAD(events, seal_forbidden) { return seals_stay(must(memfd_create("forbidden", MFD_CLOEXEC), "memfd_create")); }

WORKLOAD(events, seal_shrink) {
  const int fd = sealed_memory(F_SEAL_SHRINK);
  return [=] {
    expect(ftruncate(fd, 0) == -1 && errno == EPERM, "it can be made smaller");
    must(ftruncate(fd, 3 * kPage), "ftruncate");
  };
}

WORKLOAD(events, seal_grow) {
  const int fd = sealed_memory(F_SEAL_GROW);
  return [=] { expect(ftruncate(fd, 100 * kPage) == -1 && errno == EPERM, "it can be made larger"); };
}

WORKLOAD(events, seal_write) {
  const int fd = sealed_memory(F_SEAL_WRITE);
  return [=] { expect(pwrite(fd, "x", 1, 0) == -1 && errno == EPERM, "it can be written"); };
}

WORKLOAD(events, seal_future_write) {
  const int fd = must(memfd_create("future", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
  put(fd, std::string(kPage, 'f'));
  char* early = area(1, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  must(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), "F_ADD_SEALS");
  return [=] {
    expect(mmap(nullptr, kPage, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, "it can be mapped for writing");
    ++early[5];
    char c = 0;
    must(pread(fd, &c, 1, 5), "pread");
    expect_equal(c, early[5], "what was written through the mapping from before");
  };
}

WORKLOAD(events, seal_all) {
  const int fd = sealed_memory(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
  return [=] {
    expect(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == -1 && errno == EPERM, "it can be sealed further");
    expect_equal(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL, "the seals");
  };
}
