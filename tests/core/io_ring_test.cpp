// Reads and writes in flight, through io_uring and by plain calls: the same comes out, whatever fails.
#include "core/base/io_ring.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <random>
#include <sstream>

#include "core/base/fd.h"
#include "core/memory/page_files.h"
#include "core/memory/page_fill.h"
#include "failing_calls.h"
#include "small_disk.h"

namespace migrate {
namespace {

constexpr size_t kMiB = 1 << 20;
constexpr size_t kPage = kPageSize;

std::vector<std::byte> noise(size_t bytes, unsigned seed) {
  std::vector<std::byte> data(bytes);
  std::mt19937_64 random(seed);
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(data.data() + i, &word, 8);
  }
  return data;
}
iovec part_of(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};  // NOLINT: iovec has no other
}
Fd memory_file(std::span<const std::byte> content = {}) {
  Fd fd(check(::memfd_create("io_ring_test", MFD_CLOEXEC), "create", "a memfd"));
  pwrite_full(fd.get(), content, 0, "a memfd");
  return fd;
}
IoRing::Done one(IoRing& ring) {
  const IoRing::Done done = ring.wait();
  EXPECT_EQ(ring.pending(), 0u);
  return done;
}
/// What a process has that others can see: threads, descriptors, mappings.
std::string belongings() {
  std::string text;
  for (const char* folder : {"/proc/self/task", "/proc/self/fd"}) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) text += name + " ";
  }
  std::istringstream maps(read_file_at(AT_FDCWD, "/proc/self/maps"));
  for (std::string line; std::getline(maps, line);)
    if (!line.ends_with("[heap]")) text += "\n" + line;
  return text;
}
/// In a child, whose failures are ours.
template <class Body>
void in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      body();
    } catch (const std::exception& e) {
      ADD_FAILURE() << e.what();
    }
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

class Rings : public ::testing::TestWithParam<IoRing::Way> {};
INSTANTIATE_TEST_SUITE_P(Ways, Rings, ::testing::Values(IoRing::Way::ring, IoRing::Way::calls),
                         [](const auto& way) { return way.param == IoRing::Way::ring ? "Ring" : "Calls"; });

TEST_P(Rings, CarryManyOfAllSizes) {
  const std::vector<std::byte> data = noise(24 * kMiB + 5 * kPage, 1);
  const Fd file = memory_file();
  std::vector<std::byte> back(data.size());
  std::mt19937 random(2);
  for (const bool write : {true, false}) {
    IoRing ring(3, GetParam());
    std::map<uint64_t, size_t> begun;
    const auto told = [&](const IoRing::Done& done) {
      EXPECT_EQ(done.error, 0);
      EXPECT_EQ(begun.at(done.tag), done.bytes);
      begun.erase(done.tag);
    };
    for (size_t at = 0; at < data.size();) {
      // Pages, and pieces of megabytes, each in up to three parts.
      const size_t most = random() % 2 == 0 ? 3 * kPage : 2 * kMiB;
      const size_t n = std::min<size_t>(data.size() - at, (1 + random() % (most / kPage)) * kPage);
      std::vector<iovec> parts;
      for (size_t from = 0; from < n;) {
        const size_t length = parts.size() == 2 ? n - from : std::min(n - from, 1 + random() % n);
        const std::span<std::byte> whole = write ? std::span(const_cast<std::byte*>(data.data()), data.size()) : back;
        parts.push_back(part_of(whole.subspan(at + from, length)));
        from += length;
      }
      begun.emplace(at, n);
      if (write) {
        ring.write(at, file.get(), parts, at);
      } else {
        ring.read(at, file.get(), parts, at);
      }
      at += n;
      if (random() % 2 == 0)
        while (const auto done = ring.poll()) told(*done);
    }
    EXPECT_EQ(ring.pending(), begun.size());
    while (ring.pending() != 0) told(ring.wait());
    EXPECT_TRUE(begun.empty());
  }
  EXPECT_TRUE(back == data);
}

TEST_P(Rings, TellWhereAFileEnds) {
  const Fd file = memory_file(noise(3 * kMiB + 100, 3));
  std::vector<std::byte> back(2 * kMiB);
  const iovec into = part_of(back);
  IoRing ring(2, GetParam());
  ring.read(7, file.get(), {&into, 1}, 2 * kMiB);
  const IoRing::Done done = one(ring);
  EXPECT_EQ(done.tag, 7u);
  EXPECT_EQ(done.bytes, kMiB + 100);
  EXPECT_EQ(done.error, 0);
  ring.read(8, file.get(), {&into, 1}, 4 * kMiB);
  EXPECT_EQ(one(ring).bytes, 0u);
}

TEST_P(Rings, TellHowFarAFailedReadCame) {
  auto* memory =
      static_cast<std::byte*>(::mmap(nullptr, 2 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(memory, 'm', 2 * kMiB);
  // Behind the end of its file, so that nothing else gets mapped there meanwhile.
  const Fd empty = memory_file();
  ASSERT_NE(::mmap(memory + 9 * kPage, kPage, PROT_READ, MAP_SHARED | MAP_FIXED, empty.get(), 0), MAP_FAILED);
  const Fd mem = open_path("/proc/self/mem", O_RDWR);
  std::vector<std::byte> back(2 * kMiB);
  const iovec parts[] = {part_of(std::span(back).first(5 * kPage)), part_of(std::span(back).subspan(5 * kPage))};
  IoRing ring(2, GetParam());
  ring.read(1, mem.get(), parts, reinterpret_cast<uint64_t>(memory));
  const IoRing::Done read = one(ring);
  EXPECT_EQ(read.bytes, 9 * kPage);
  EXPECT_EQ(read.error, EIO);
  EXPECT_EQ(std::count(back.begin(), back.end(), std::byte{'m'}), static_cast<ptrdiff_t>(9 * kPage));
  ring.write(2, mem.get(), parts, reinterpret_cast<uint64_t>(memory));
  const IoRing::Done written = one(ring);
  EXPECT_EQ(written.bytes, 9 * kPage);
  EXPECT_EQ(written.error, EIO);
  ::munmap(memory, 2 * kMiB);
}

TEST_P(Rings, TellOfAFullDisk) {
  const Fd disk = small_disk("1536k");
  const Fd file = open_at(disk.get(), "file", O_RDWR | O_CREAT, 0600);
  const std::vector<std::byte> data = noise(kMiB, 4);
  const iovec from = part_of(data);
  IoRing ring(2, GetParam());
  ring.write(0, file.get(), {&from, 1}, 0);
  ring.write(1, file.get(), {&from, 1}, kMiB);
  size_t bytes = 0;
  int failed = 0;
  while (ring.pending() != 0) {
    const IoRing::Done done = ring.wait();
    bytes += done.bytes;
    EXPECT_TRUE(done.error == 0 || done.error == ENOSPC) << done.error;
    if (done.error != 0) ++failed;
  }
  EXPECT_EQ(failed, 1);
  EXPECT_EQ(bytes, kMiB + kMiB / 2);
}

TEST_P(Rings, ContinueWhatIsShort) {
  in_child([] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{kMiB + 3 * kPage, RLIM_INFINITY};
    check(::setrlimit(RLIMIT_FSIZE, &limit), "limit", "files");
    const Fd file = memory_file();
    const std::vector<std::byte> data = noise(2 * kMiB, 5);
    const iovec from = part_of(data);
    IoRing ring(2, GetParam());
    ring.write(0, file.get(), {&from, 1}, 0);
    const IoRing::Done done = one(ring);
    EXPECT_EQ(done.bytes, kMiB + 3 * kPage);
    EXPECT_EQ(done.error, EFBIG);
  });
}

TEST_P(Rings, EndWhenAllIsThrough) {
  const std::vector<std::byte> data = noise(8 * kMiB, 6);
  const Fd file = memory_file();
  {
    std::vector<std::byte> copy = data;
    IoRing ring(8, GetParam());
    for (size_t at = 0; at < copy.size(); at += kMiB) {
      const iovec from = part_of(std::span(copy).subspan(at, kMiB));
      ring.write(at, file.get(), {&from, 1}, at);
    }
  }
  std::vector<std::byte> back(data.size());
  EXPECT_EQ(pread_full(file.get(), back, 0, "a memfd"), data.size());
  EXPECT_TRUE(back == data);
}

TEST_P(Rings, FailOnWrongDescriptors) {
  std::vector<std::byte> data(kMiB);
  const iovec part = part_of(data);
  IoRing ring(2, GetParam());
  ring.read(0, 1 << 20, {&part, 1}, 0);
  EXPECT_EQ(one(ring).error, EBADF);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd out(ends[0]), in(ends[1]);
  ring.write(0, in.get(), {&part, 1}, 0);
  EXPECT_EQ(one(ring).error, ESPIPE);
}

TEST(IoRing, WorksWhereItIsForbidden) {
  in_child([] {
    let_fail(SYS_io_uring_setup, EPERM);
    const std::vector<std::byte> data = noise(4 * kMiB, 7);
    const Fd file = memory_file();
    std::vector<std::byte> back(data.size());
    const iovec from = part_of(data), into = part_of(back);
    IoRing ring(2, IoRing::Way::ring);
    ring.write(0, file.get(), {&from, 1}, 0);
    EXPECT_EQ(one(ring).bytes, data.size());
    ring.read(0, file.get(), {&into, 1}, 0);
    EXPECT_EQ(one(ring).bytes, data.size());
    EXPECT_TRUE(back == data);
    std::fill(back.begin(), back.end(), std::byte{0});
    const PagesIn all{file.get(), 0, back};
    read_pages({&all, 1}, "a file");
    EXPECT_TRUE(back == data);
  });
}

TEST(PageFill, ReadsScatteredPagesAndLeavesNothing) {
  const std::vector<std::byte> data = noise(16 * kMiB, 8);
  const Fd file = memory_file(data), other = memory_file(std::span(data).first(3 * kPage));
  // Every third page is left out in the first half: single pages, and what is large.
  std::vector<std::byte> back(2 * data.size()), expected(back.size());
  std::vector<PagesIn> parts;
  const auto add = [&](int fd, size_t offset, size_t to, size_t bytes) {
    parts.push_back({fd, offset, std::span(back).subspan(to, bytes)});
    std::memcpy(expected.data() + to, data.data() + offset, bytes);
  };
  size_t from = 0, to = 0;
  for (; from < data.size() / 2; from += 2 * kPage, to += 3 * kPage) add(file.get(), from, to, 2 * kPage);
  add(other.get(), kPage, to, 2 * kPage);
  add(file.get(), from, to + 8 * kPage, data.size() - from);
  const std::string before = belongings();
  read_pages(parts, "a file");
  EXPECT_EQ(belongings(), before);
  EXPECT_TRUE(back == expected);
}

TEST(PageFill, ToldWhatFails) {
  const Fd file = memory_file(noise(8 * kMiB, 9));
  std::vector<std::byte> back(9 * kMiB);
  const auto read = [&](int fd, std::span<std::byte> to) {
    const PagesIn all{fd, 0, to};
    read_pages({&all, 1}, "the image");
  };
  const std::string before = belongings();
  for (const size_t bytes : {8 * kMiB + kPage, 9 * kMiB}) {
    try {
      read(file.get(), std::span(back).first(bytes));
      ADD_FAILURE() << "a short file was taken";
    } catch (const Corrupt& e) {
      EXPECT_STREQ(e.what(), "the image is damaged: it is too short");
    }
  }
  try {
    read(-1, back);
    ADD_FAILURE() << "no file was taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), EBADF);
  }
  EXPECT_EQ(belongings(), before);
}

/// Memory of this process, of all kinds of runs.
TEST(PageFolders, AreTheSameInBothWays) {
  constexpr uint64_t kPages = 5000;
  auto* memory = static_cast<std::byte*>(
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const std::vector<std::byte> data = noise(kPages * kPage, 10);
  std::memcpy(memory, data.data(), data.size());
  std::mt19937 random(11);
  for (uint64_t page = 0; page < kPages / 2; ++page)
    if (random() % 3 == 0) std::memset(memory + page * kPage, 0, kPage);
  PageSource source{.memory = {MemoryId::Kind::task, 42}, .runs = {}, .fd = open_path("/proc/self/mem", O_RDONLY)};
  for (uint64_t page = 0; page < kPages;) {
    const uint64_t pages = std::min<uint64_t>(kPages - page, 1 + random() % (random() % 8 == 0 ? 900 : 4));
    source.runs.push_back({reinterpret_cast<uint64_t>(memory) + page * kPage, pages, random() % 2 == 0});
    page += pages + random() % 2;
  }
  std::vector<std::string> files;
  for (const char* way : {"", "calls"}) {
    ::setenv("MIGRATE_IO", way, 1);
    const Fd disk = small_disk("64M");
    ImageSet images;
    PageFolder folder(disk.get(), images, true);
    const WrittenPages written = write_pages(std::span(&source, 1), {}, folder);
    EXPECT_EQ(written.written, written.stored.at(source.memory).pages());
    std::string text;
    for (const char* name : {"pagemap-42.img", "pages-1.img"}) text += read_file_at(disk.get(), name, 64 << 20);
    EXPECT_GT(text.size(), written.written * kPage);
    files.push_back(std::move(text));
    PageImages found(disk.get());
    for (const StoredPages& s : found.locate("pagemap-42.img")) {
      std::vector<std::byte> back(s.bytes);
      EXPECT_EQ(pread_full(s.fd, back, s.offset, "pages"), s.bytes);
      EXPECT_EQ(std::memcmp(back.data(), reinterpret_cast<void*>(s.address), s.bytes), 0);  // NOLINT: our memory
    }
  }
  ::unsetenv("MIGRATE_IO");
  EXPECT_TRUE(files[0] == files[1]);
  ::munmap(memory, kPages * kPage);
}

TEST(PageFolders, TellOfAFullDiskInTheEnd) {
  const std::vector<std::byte> data = noise(kMiB, 12);
  for (const char* way : {"", "calls"}) {
    ::setenv("MIGRATE_IO", way, 1);
    const Fd disk = small_disk("4M");
    ImageSet images;
    PageFolder folder(disk.get(), images, true);
    folder.open({MemoryId::Kind::task, 42});
    int failures = 0;
    for (uint64_t i = 0; i < 8; ++i) {
      try {
        folder.write(i * kMiB, data);
      } catch (const Error& e) {
        ++failures;
        EXPECT_STREQ(e.what(), "write pages-1.img: No space left on device");
      }
    }
    // Whoever passes over that is told again, and no restore takes the folder.
    try {
      folder.finish();
      ADD_FAILURE() << "what is not there was stored";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ENOSPC);
    }
    EXPECT_LT(::faccessat(disk.get(), "pagemap-42.img", F_OK, 0), 0);
  }
  ::unsetenv("MIGRATE_IO");
}

}  // namespace
}  // namespace migrate
