// Files in less common states.
#include <dirent.h>
#include <sys/xattr.h>

#include <set>

#include "small.h"

// Half of its entries were read before.
WORKLOAD(files, folder_half_read) {
  must(mkdir(place.path("d").c_str(), 0755), "mkdir");
  for (int i = 0; i < 300; ++i) close(place.open_file("d/file-with-a-long-name-" + std::to_string(i)));
  const int fd = must(open(place.path("d").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open");
  const auto entries = [=] {
    std::set<std::string> names;
    alignas(8) char part[1024];
    const long n = must(syscall(SYS_getdents64, fd, part, sizeof part), "getdents64");
    for (long at = 0; at < n;) {
      const auto* e = reinterpret_cast<const dirent64*>(part + at);
      names.insert(e->d_name);
      at += e->d_reclen;
    }
    return names;
  };
  const auto seen = std::make_shared<std::set<std::string>>();
  for (int i = 0; i < 10; ++i) seen->merge(entries());
  return [=] {
    std::set<std::string> all = *seen;
    const size_t before = all.size();
    size_t rest = 0;
    const off_t here = lseek(fd, 0, SEEK_CUR);
    for (std::set<std::string> more; !(more = entries()).empty(); all.merge(more)) rest += more.size();
    must(lseek(fd, here, SEEK_SET), "lseek");
    expect_equal(all.size(), size_t{302}, "entries in all");
    expect_equal(before + rest, size_t{302}, "entries that were read, counting those that came twice");
  };
}

WORKLOAD(files, write_hint) {
  const int fd = place.open_file("f");
  uint64_t hint = 3;
  if (fcntl(fd, 1036 /* F_SET_RW_HINT */, &hint) == -1) throw NotHere("there are no write hints here");
  return stays("the write hint", [=] {
    uint64_t now = 0;
    must(fcntl(fd, 1035, &now), "F_GET_RW_HINT");
    return now;
  });
}

WORKLOAD(files, owner_is_thread) {
  const Pipe p = make_pipe();
  f_owner_ex owner{F_OWNER_TID, gettid()};
  must(fcntl(p.in, F_SETOWN_EX, &owner), "F_SETOWN_EX");
  return [=] {
    f_owner_ex now{};
    must(fcntl(p.in, F_GETOWN_EX, &now), "F_GETOWN_EX");
    expect(now.type == F_OWNER_TID && now.pid == owner.pid, "the owner is another");
  };
}

WORKLOAD(files, owner_is_group) {
  const Pipe p = make_pipe();
  f_owner_ex owner{F_OWNER_PGRP, getpgrp()};
  must(fcntl(p.in, F_SETOWN_EX, &owner), "F_SETOWN_EX");
  return [=] {
    f_owner_ex now{};
    must(fcntl(p.in, F_GETOWN_EX, &now), "F_GETOWN_EX");
    expect(now.type == F_OWNER_PGRP && now.pid == owner.pid, "the owner is another");
  };
}

WORKLOAD(files, memory_file_opened_read_only) {
  const int fd = must(memfd_create("twice", MFD_CLOEXEC), "memfd_create");
  put(fd, "twice");
  const int reader = must(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    char text[6] = {};
    must(pread(reader, text, 5, 0), "pread");
    expect(std::strcmp(text, "twice") == 0, "the file differs");
    expect(write(reader, "x", 1) == -1 && errno == EBADF, "what was opened for reading can be written");
    expect_equal(lseek(reader, 0, SEEK_CUR), 0, "its offset");
  };
}

WORKLOAD(files, memory_file_appends) {
  const int fd = must(memfd_create("append", MFD_CLOEXEC), "memfd_create");
  must(fcntl(fd, F_SETFL, O_APPEND), "fcntl");
  return [=] { expect((fcntl(fd, F_GETFL) & O_APPEND) != 0, "O_APPEND is gone"); };
}

WORKLOAD(files, deleted_with_attributes) {
  const int fd = place.open_file("f");
  if (fsetxattr(fd, "user.test", "value", 5, 0) == -1) throw NotHere("the file system has no extended attributes");
  must(unlink(place.path("f").c_str()), "unlink");
  return stays("the extended attributes of a deleted file", [=] {
    std::string names(4096, '\0'), all;
    names.resize(static_cast<size_t>(must(flistxattr(fd, names.data(), names.size()), "flistxattr")));
    for (size_t at = 0; at < names.size(); at += std::strlen(&names[at]) + 1) {
      char value[4096];
      const ssize_t size = must(fgetxattr(fd, &names[at], value, sizeof value), "fgetxattr");
      all += std::string(&names[at]) + "=" + std::string(value, static_cast<size_t>(size)) + "\n";
    }
    return all;
  });
}

WORKLOAD(files, deleted_opened_twice_with_flags) {
  const int one = place.open_file("f", O_RDWR | O_CREAT | O_APPEND);
  put(one, "deleted");
  const int other = place.open_file("f", O_RDONLY | O_NONBLOCK);
  must(lseek(other, 3, SEEK_SET), "lseek");
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    expect((fcntl(one, F_GETFL) & O_APPEND) != 0, "O_APPEND is gone");
    expect_equal(lseek(other, 0, SEEK_CUR), 3, "the other's offset");
    expect(write(other, "x", 1) == -1, "the other can be written");
  };
}

WORKLOAD(files, in_deleted_folder_of_same_name) {
  must(mkdir(place.path("d").c_str(), 0700), "mkdir");
  const int fd = place.open_file("d/f");
  put(fd, "moved along");
  must(rename(place.path("d").c_str(), place.path("e").c_str()), "rename");
  must(mkdir(place.path("d").c_str(), 0700), "mkdir");
  return [=] {
    char text[12] = {};
    must(pread(fd, text, 11, 0), "pread");
    expect(std::strcmp(text, "moved along") == 0, "the file differs");
  };
}

WORKLOAD(files, own_memory) {
  const int fd = must(open("/proc/self/mem", O_RDONLY | O_CLOEXEC), "open");
  static int word;
  word = 4711;
  return [=] {
    int got = 0;
    must(pread(fd, &got, sizeof got, static_cast<off_t>(reinterpret_cast<uintptr_t>(&word))), "pread");
    expect_equal(got, 4711, "what /proc/self/mem shows");
  };
}

WORKLOAD(files, own_namespace) {
  const int fd = must(open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    struct stat s {
    }, own{};
    must(fstat(fd, &s), "fstat");
    must(stat("/proc/self/ns/uts", &own), "stat");
    expect(s.st_ino == own.st_ino, "it is another namespace");
  };
}

WORKLOAD(files, proc_folder) {
  const int fd = must(open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open");
  return [=] { must(faccessat(fd, "status", F_OK, 0), "faccessat"); };
}

WORKLOAD(files, proc_of_thread) {
  const int fd = must(open("/proc/thread-self/comm", O_RDONLY | O_CLOEXEC), "open");
  return [=] {
    char name[20] = {};
    must(pread(fd, name, sizeof name, 0), "pread");
    expect(name[0] != 0, "nothing is in it");
  };
}

WORKLOAD(files, fifo_deleted) {
  must(mkfifo(place.path("fifo").c_str(), 0600), "mkfifo");
  const int both = place.open_file("fifo", O_RDWR);
  must(unlink(place.path("fifo").c_str()), "unlink");
  put(both, "left");
  return [=] {
    expect(drain(both) == "left", "what was in the deleted FIFO differs");
    put(both, "left");
  };
}

WORKLOAD(files, shared_memory_file) {
  const std::string name = "/dev/shm/small-" + std::to_string(getpid());
  const int fd = must(open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
  put(fd, "shared");
  must(unlink(name.c_str()), "unlink");
  char* at = static_cast<char*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  expect(at != MAP_FAILED, "mmap failed");
  return [=] {
    char text[7] = {};
    must(pread(fd, text, 6, 0), "pread");
    expect(std::strcmp(text, "shared") == 0 && std::memcmp(at, "shared", 6) == 0, "a deleted file of /dev/shm differs");
  };
}
