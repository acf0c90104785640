// Files that are deleted, linked, sparse, special.
#include <dirent.h>
#include <sys/sendfile.h>
#include <sys/xattr.h>

#include "small.h"

namespace {

nlink_t links(int fd) {
  struct stat s {};
  must(fstat(fd, &s), "fstat");
  return s.st_nlink;
}

void expect_content(int fd, const std::string& want) {
  std::string got(want.size() + 10, '\0');
  got.resize(static_cast<size_t>(must(pread(fd, got.data(), got.size(), 0), "pread")));
  expect(got == want, "the file has other content: " + got.substr(0, 40));
}

}  // namespace

WORKLOAD(files, deleted) {
  const int fd = place.open_file("f");
  put(fd, "deleted file");
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    expect_content(fd, "deleted file");
    expect_equal(links(fd), nlink_t{0}, "its links");
  };
}

WORKLOAD(files, deleted_shared) {
  const int one = place.open_file("f");
  put(one, "deleted file");
  const int other = place.open_file("f", O_RDONLY);
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    expect_content(other, "deleted file");
    must(pwrite(one, "D", 1, 0), "pwrite");
    expect_content(other, "Deleted file");
    must(pwrite(one, "d", 1, 0), "pwrite");
  };
}

WORKLOAD(files, deleted_and_made_again) {
  const int old = place.open_file("f");
  put(old, "old");
  must(unlink(place.path("f").c_str()), "unlink");
  const int fresh = place.open_file("f");
  put(fresh, "new");
  return [=] {
    expect_content(old, "old");
    expect_content(fresh, "new");
  };
}

WORKLOAD(files, deleted_with_mode) {
  const int fd = place.open_file("f");
  must(fchmod(fd, 04751), "fchmod");
  must(fchown(fd, 123, 456), "fchown");
  must(fchmod(fd, 04751), "fchmod");
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    struct stat s {};
    must(fstat(fd, &s), "fstat");
    expect_equal(s.st_mode & 07777, mode_t{04751}, "the mode");
    expect_equal(s.st_uid, uid_t{123}, "the owner");
    expect_equal(s.st_gid, gid_t{456}, "the group");
  };
}

WORKLOAD(files, deleted_sparse) {
  const int fd = place.open_file("f");
  must(ftruncate(fd, off_t{1} << 33), "ftruncate");
  must(pwrite(fd, "middle", 6, off_t{1} << 32), "pwrite");
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    struct stat s {};
    must(fstat(fd, &s), "fstat");
    expect_equal(s.st_size, off_t{1} << 33, "the size");
    expect(s.st_blocks < 4096, "the holes were filled");
    char text[7] = {};
    must(pread(fd, text, 6, off_t{1} << 32), "pread");
    expect(std::strcmp(text, "middle") == 0, "what is between the holes differs");
  };
}

WORKLOAD(files, deleted_with_times) {
  const int fd = place.open_file("f");
  const timespec times[2] = {{1000000000, 0}, {1100000000, 5000}};
  must(futimens(fd, times), "futimens");
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    struct stat s {};
    must(fstat(fd, &s), "fstat");
    expect_equal(s.st_mtim.tv_sec, 1100000000, "the time of the last change");
  };
}

WORKLOAD(files, nameless) {
  const int fd = open(place.dir().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd == -1) throw NotHere("the file system has no O_TMPFILE");
  put(fd, "nameless");
  return [=] { expect_content(fd, "nameless"); };
}

WORKLOAD(files, nameless_read_only) {
  const int fd = open(place.dir().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd == -1) throw NotHere("the file system has no O_TMPFILE");
  put(fd, "nameless");
  const int reader = must(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    expect_content(reader, "nameless");
    expect(write(reader, "x", 1) == -1, "what was opened for reading can be written");
    must(pwrite(fd, "N", 1, 0), "pwrite");
    expect_content(reader, "Nameless");
    must(pwrite(fd, "n", 1, 0), "pwrite");
  };
}

WORKLOAD(files, hard_link) {
  const int fd = place.open_file("f");
  must(link(place.path("f").c_str(), place.path("g").c_str()), "link");
  put(fd, "linked");
  const int other = place.open_file("g", O_RDONLY);
  return [=] {
    expect_content(other, "linked");
    expect_equal(links(fd), nlink_t{2}, "its links");
  };
}

WORKLOAD(files, renamed) {
  const int fd = place.open_file("f");
  put(fd, "renamed");
  must(rename(place.path("f").c_str(), place.path("g").c_str()), "rename");
  return [=] { expect_content(fd, "renamed"); };
}

WORKLOAD(files, folder) {
  for (const char* name : {"a", "b", "c"}) close(place.open_file(name));
  const int fd = must(open(place.dir().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open");
  return [=] {
    must(lseek(fd, 0, SEEK_SET), "lseek");
    DIR* all = fdopendir(must(fcntl(fd, F_DUPFD_CLOEXEC, 0), "dup"));
    int n = 0;
    while (const dirent* e = readdir(all)) n += std::strlen(e->d_name) == 1 && e->d_name[0] != '.';
    closedir(all);
    expect_equal(n, 3, "files in the folder");
    must(lseek(fd, 0, SEEK_SET), "lseek");
  };
}

WORKLOAD(files, devices) {
  const int null = must(open("/dev/null", O_RDWR | O_CLOEXEC), "open"),
            zero = must(open("/dev/zero", O_RDWR | O_CLOEXEC), "open");
  const int full = must(open("/dev/full", O_RDWR | O_CLOEXEC), "open"),
            random = must(open("/dev/urandom", O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    char c = 1;
    expect(read(null, &c, 1) == 0 && write(null, "x", 1) == 1, "/dev/null is another");
    expect(read(zero, &c, 1) == 1 && c == 0, "/dev/zero is another");
    expect(write(full, "x", 1) == -1 && errno == ENOSPC, "/dev/full is another");
    expect(read(random, &c, 1) == 1, "/dev/urandom is another");
  };
}

WORKLOAD(files, own_proc_files) {
  const int status = must(open("/proc/self/status", O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    char text[4096] = {};
    must(pread(status, text, sizeof text - 1, 0), "pread");
    expect(field(text, "Pid") == std::to_string(getpid()), "/proc/self/status is of process " + field(text, "Pid"));
  };
}

WORKLOAD(files, proc_of_child) {
  const pid_t child = idle_child();
  const int fd = must(open(("/proc/" + std::to_string(child) + "/status").c_str(), O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    char text[4096] = {};
    must(pread(fd, text, sizeof text - 1, 0), "pread");
    expect(field(text, "Pid") == std::to_string(child), "it is of process " + field(text, "Pid"));
  };
}

WORKLOAD(files, sysctl) {
  const int fd = must(open("/proc/sys/kernel/ostype", O_RDONLY | O_CLOEXEC), "open");
  return [=] { expect_content(fd, "Linux\n"); };
}

WORKLOAD(files, many) {
  std::vector<int> all;
  for (int i = 0; i < 60; ++i) put(all.emplace_back(place.open_file("f" + std::to_string(i))), std::to_string(i));
  return [=] {
    for (size_t i = 0; i < all.size(); ++i) expect_content(all[i], std::to_string(i));
  };
}

WORKLOAD(files, sent_file) {
  const int fd = place.open_file("f");
  put(fd, std::string(5000, 's'));
  const Pipe p = make_pipe();
  return [=] {
    off_t at = 100;
    expect(sendfile(p.out, fd, &at, 1000) == 1000 && at == 1100, "sendfile was short");
    expect(drain(p.in) == std::string(1000, 's'), "what was sent differs");
  };
}
