#include "pageserver/page_reader.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cstring>

#include "core/base/procfs.h"

namespace migrate {
namespace {

constexpr size_t kPages = 300;

/// A parent with pages of its own, pages that it shares with a child since a fork, and pages without access; all
/// paused.
class Family {
 public:
  Family() {
    area_ = static_cast<std::byte*>(
        ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ::madvise(area_, kPages * kPageSize, MADV_NOHUGEPAGE);
    int ready[2];
    check(::pipe2(ready, O_CLOEXEC), "make", "a pipe");
    parent_ = ::fork();
    if (parent_ == 0) be_parent(ready[1]);
    ::close(ready[1]);
    char c;
    EXPECT_EQ(::read(ready[0], &c, 1), 1);
    ::close(ready[0]);
  }
  ~Family() {
    ::kill(-parent_, SIGKILL);
    ::waitpid(parent_, nullptr, 0);
    ::munmap(area_, kPages * kPageSize);
  }
  uint64_t address(size_t page) const { return reinterpret_cast<uint64_t>(area_) + page * kPageSize; }
  std::string proc(const char* file) const { return "/proc/" + std::to_string(parent_) + "/" + file; }
  pid_t pid() const { return parent_; }

  /// Of the parent's pages, those that nobody else maps.
  std::vector<bool> exclusive() const {
    std::vector<uint64_t> words(kPages);
    const Fd pagemap = open_path(proc("pagemap"), O_RDONLY);
    pread_full(pagemap.get(), std::as_writable_bytes(std::span(words)), address(0) / kPageSize * 8, "pagemap");
    std::vector<bool> found;
    for (const uint64_t word : words) found.push_back((word >> 56 & 1) != 0);
    return found;
  }

 private:
  [[noreturn]] void be_parent(int ready) {
    ::setpgid(0, 0);
    for (size_t i = 0; i < kPages; ++i) std::memset(area_ + i * kPageSize, static_cast<int>(i % 251 + 1), kPageSize);
    const pid_t child = ::fork();
    if (child == 0)
      for (;;) ::pause();
    // In runs of all lengths its own again.
    for (size_t i = 0, run = 1; i < kPages; i += 2 * run, ++run)
      for (size_t k = i; k < std::min(i + run, kPages); ++k) area_[k * kPageSize + 5] = std::byte{0xee};
    ::mprotect(area_ + 100 * kPageSize, 20 * kPageSize, PROT_NONE);
    (void)!::write(ready, "r", 1);
    for (;;) ::pause();
  }

  std::byte* area_;
  pid_t parent_;
};

PageSource source_of(const Family& family) {
  PageSource source;
  source.memory = {MemoryId::Kind::task, static_cast<uint64_t>(family.pid())};
  source.fd = open_path(family.proc("mem"), O_RDONLY);
  return source;
}

TEST(PageReader, ReadsWhatIsThereAndLeavesSharingAlone) {
  const Family family;
  const std::vector<bool> before = family.exclusive();
  EXPECT_GT(std::count(before.begin(), before.end(), true), 50);
  EXPECT_GT(std::count(before.begin(), before.end(), false), 50);
  const PageSource source = source_of(family);
  const PageReader reader(source);
  std::vector<std::byte> wanted(kPages * kPageSize), got(kPages * kPageSize);
  pread_full(source.fd.get(), wanted, family.address(0), "memory");
  EXPECT_TRUE(reader.read(family.address(0), got));
  EXPECT_TRUE(wanted == got);
  EXPECT_EQ(got[100 * kPageSize + 7], std::byte{101});  // without access for the task itself
  EXPECT_EQ(family.exclusive(), before);
}

TEST(PageReader, SaysThatTheTaskIsGone) {
  PageSource source;
  uint64_t address;
  std::vector<std::byte> page(kPageSize);
  std::unique_ptr<PageReader> reader;
  {
    const Family family;
    address = family.address(0);
    source = source_of(family);
    reader = std::make_unique<PageReader>(source);
    EXPECT_TRUE(reader->read(address, page));
  }
  EXPECT_FALSE(reader->read(address, page));
}

TEST(PageReader, ReadsSharedObjects) {
  const Fd object(check(::memfd_create("object", MFD_CLOEXEC), "make", "a memory file"));
  const std::vector<std::byte> content(3 * kPageSize, std::byte{9});
  write_full(object.get(), content, "a memory file");
  PageSource source;
  source.memory = {MemoryId::Kind::shmem, 1};
  source.fd = object.dup();
  const PageReader reader(source);
  std::vector<std::byte> got(2 * kPageSize);
  EXPECT_TRUE(reader.read(kPageSize, got));
  EXPECT_TRUE(std::equal(got.begin(), got.end(), content.begin()));
  EXPECT_THROW(static_cast<void>(reader.read(2 * kPageSize, got)), Error);
}

}  // namespace
}  // namespace migrate
