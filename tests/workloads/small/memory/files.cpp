// Mappings of files.
#include <csetjmp>
#include <csignal>

#include "small.h"

namespace {

/// A file of some pages with a pattern.
int filled_file(const Place& place, const std::string& name, size_t pages, uint64_t salt) {
  const int fd = place.open_file(name);
  std::string bytes(pages * kPage, '\0');
  fill_pattern(bytes.data(), bytes.size(), salt);
  put(fd, bytes);
  return fd;
}

}  // namespace

WORKLOAD(memory, file_private) {
  const int fd = filled_file(place, "f", 6, 1);
  char* at = area(6, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  std::memset(at + 2 * kPage, 'w', kPage);
  return [=] {
    expect_filled(at, 2, 1, "pages of the file");
    for (size_t i = 2 * kPage; i < 3 * kPage; ++i) expect(at[i] == 'w', "the page that was written differs");
    char c = 0;
    must(pread(fd, &c, 1, 2 * kPage), "pread");
    expect(c != 'w' || pattern(2 * kPage, 1) == 'w', "the file was changed");
  };
}

// What is not private yet follows the file.
WORKLOAD(memory, file_private_follows) {
  const int fd = filled_file(place, "f", 4, 1);
  char* at = area(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  at[0] = 'w';
  expect(at[2 * kPage] == static_cast<char>(pattern(2 * kPage, 1)), "mmap");
  return [=] {
    const char c = static_cast<char>(at[2 * kPage] + 1);
    must(pwrite(fd, &c, 1, 2 * kPage), "pwrite");
    expect_equal(at[2 * kPage], c, "a page that does not belong to it alone");
    expect_equal(at[0], 'w', "its own page");
  };
}

WORKLOAD(memory, file_shared) {
  const int fd = filled_file(place, "f", 4, 1);
  char* at = area(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  return [=] {
    ++at[3 * kPage];
    char c = 0;
    must(pread(fd, &c, 1, 3 * kPage), "pread");
    expect_equal(c, at[3 * kPage], "what was written through the mapping");
    expect_filled(at, 3, 1, "the mapping");
  };
}

WORKLOAD(memory, file_shared_read_only) {
  close(filled_file(place, "f", 4, 1));
  const int fd = place.open_file("f", O_RDONLY);
  char* at = area(4, PROT_READ, MAP_SHARED, fd);
  close(fd);
  return [=] {
    expect(mprotect(at, kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
           "a mapping of a file opened for reading can be written");
    expect_filled(at, 4, 1, "the mapping");
  };
}

WORKLOAD(memory, file_with_offset) {
  const int fd = filled_file(place, "f", 8, 1);
  char* at = area(3, PROT_READ, MAP_PRIVATE, fd, 4 * kPage);
  close(fd);
  return [=] {
    for (size_t i = 0; i < 3 * kPage; ++i)
      expect(at[i] == static_cast<char>(pattern(4 * kPage + i, 1)), "it shows another part of the file");
  };
}

WORKLOAD(memory, file_deleted) {
  const int fd = filled_file(place, "f", 4, 6);
  char* at = area(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  must(unlink(place.path("f").c_str()), "unlink");
  return [=] {
    expect_filled(at, 3, 6, "a deleted file's mapping");
    ++at[3 * kPage];
    char c = 0;
    must(pread(fd, &c, 1, 3 * kPage), "pread");
    expect_equal(c, at[3 * kPage], "what was written through the mapping");
  };
}

WORKLOAD(memory, file_deleted_private) {
  const int fd = filled_file(place, "f", 4, 6);
  char* at = area(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  close(fd);
  must(unlink(place.path("f").c_str()), "unlink");
  at[kPage] = 'w';
  return [=] {
    expect_equal(at[kPage], 'w', "its own page");
    for (size_t i = 2 * kPage; i < 4 * kPage; ++i)
      expect(at[i] == static_cast<char>(pattern(i, 6)), "a deleted file's page differs");
  };
}

// Beyond its end a mapped file raises SIGBUS, also where it was longer once.
WORKLOAD(memory, file_truncated) {
  const int fd = filled_file(place, "f", 4, 6);
  char* at = area(4, PROT_READ, MAP_SHARED, fd);
  must(ftruncate(fd, kPage + 100), "ftruncate");
  return [=] {
    expect(readable(at + kPage), "the last page cannot be read");
    expect(!readable(at + 2 * kPage), "a page beyond the file's end can be read");
    expect_equal(at[kPage + 200], 0, "what follows the end in the last page");
    must(ftruncate(fd, 3 * kPage), "ftruncate");
    expect(readable(at + 2 * kPage), "a page cannot be read although the file has grown");
    must(ftruncate(fd, kPage + 100), "ftruncate");
  };
}

// Private pages over holes of a file.
WORKLOAD(memory, file_holes) {
  const int fd = place.open_file("f");
  must(ftruncate(fd, 64 * kPage), "ftruncate");
  must(pwrite(fd, "x", 1, 40 * kPage), "pwrite");
  char* at = area(64, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  at[10 * kPage] = 'w';
  return [=] {
    expect_equal(at[10 * kPage], 'w', "its own page over a hole");
    expect_equal(at[40 * kPage], 'x', "the file's page");
    for (const size_t page : {0, 11, 39, 41, 63}) expect_equal(at[page * kPage + 5], 0, "a hole");
  };
}

WORKLOAD(memory, file_opened_by_map_files_only) {
  const int fd = filled_file(place, "f", 2, 6);
  char* at = area(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  close(fd);
  return [=] {
    ++at[0];
    char c = 0;
    const int again = place.open_file("f", O_RDONLY);
    must(pread(again, &c, 1, 0), "pread");
    close(again);
    expect_equal(c, at[0], "what was written through the mapping");
  };
}

WORKLOAD(memory, zero_device_private) {
  const int fd = must(open("/dev/zero", O_RDWR | O_CLOEXEC), "open");
  char* at = area(3, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  at[kPage] = 4;
  return [=] { expect(at[kPage] == 4 && at[0] == 0 && at[2 * kPage] == 0, "a private mapping of /dev/zero differs"); };
}
