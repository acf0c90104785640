// Parsing of smaps, the search for pages, and page images.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "core/base/procfs.h"
#include "core/image/magic.h"
#include "core/memory/huge_pages.h"
#include "core/memory/page_files.h"
#include "core/memory/page_scan.h"
#include "core/memory/vma.h"
#include "images/pagemap.pb.h"
#include "tests/core/zero_page.h"

namespace migrate {
namespace {

/// A mapping of this process, unmapped at the end.
class Mapping {
 public:
  Mapping(uint64_t pages, int prot, int flags, int fd = -1)
      : bytes_(pages * kPageSize), at_(::mmap(nullptr, bytes_, prot, flags, fd, 0)) {
    if (at_ == MAP_FAILED) throw Error("map", "test memory", errno);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(at_, bytes_); }
  char* page(uint64_t n) const { return static_cast<char*>(at_) + n * kPageSize; }
  uint64_t address(uint64_t n = 0) const { return reinterpret_cast<uint64_t>(page(n)); }
  RemoteRange range() const { return {RemoteAddr(address()), RemoteAddr(address() + bytes_)}; }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_;
  void* at_;
};

class TempFile {
 public:
  explicit TempFile(size_t bytes) {
    fd_ = Fd(check(::mkstemp(name_), "make", "a file"));
    write_full(fd_.get(), std::vector<std::byte>(bytes, std::byte{'f'}), name_);
  }
  ~TempFile() { ::unlink(name_); }
  int fd() const { return fd_.get(); }

 private:
  char name_[32] = "/tmp/memory_test.XXXXXX";
  Fd fd_;
};

std::vector<std::pair<uint64_t, uint64_t>> pages_of(const std::vector<PageRun>& runs, uint64_t base) {
  std::vector<std::pair<uint64_t, uint64_t>> out;
  for (const PageRun& run : runs) out.emplace_back((run.address - base) / kPageSize, run.pages);
  return out;
}

using Pages = std::vector<std::pair<uint64_t, uint64_t>>;

/// Both ways of looking, so that kernels without PAGEMAP_SCAN are tested here too.
Pages scan_one(const Mapping& m) {
  const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
  const RemoteRange range = m.range();
  const auto by_scan = pages_of(scan_private_pages(pagemap.get(), {&range, 1}), m.address());
  EXPECT_EQ(by_scan, pages_of(scan_private_pages_by_words(pagemap.get(), {&range, 1}), m.address()));
  return by_scan;
}

TEST(Smaps, ParsesNamesAndFlags) {
  const auto vmas = parse_smaps(
      "00400000-00401000 r-xp 00001000 fe:00 248030                     /tmp/a b\\012c (deleted)\n"
      "Size:                 12 kB\nProtectionKey:         3\nVmFlags: rd ex mr mw me dd wf \n"
      "7ffe0000-7fff0000 rw-s 00000000 00:01 7                          /dev/zero (deleted)\nVmFlags: rd wr sh lo gd "
      "nr sd\n"
      "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\nVmFlags: ex\n"
      "7fff1000-7fff2000 ---p 00000000 00:00 0 \nVmFlags: mr");
  ASSERT_EQ(vmas.size(), 4u);
  EXPECT_EQ(vmas[0].name, "/tmp/a b\\012c (deleted)");
  EXPECT_EQ(vmas[0].prot, PROT_READ | PROT_EXEC);
  EXPECT_EQ(vmas[0].offset, 0x1000u);
  EXPECT_EQ(vmas[0].device, makedev(0xfe, 0));
  EXPECT_EQ(vmas[0].inode, 248030u);
  EXPECT_EQ(vmas[0].protection_key, 3);
  EXPECT_TRUE(vmas[0].has(VmFlag::dont_dump) && vmas[0].has(VmFlag::wipe_on_fork) && vmas[0].has(VmFlag::may_write));
  EXPECT_EQ(vmas[0].link_name(), "400000-401000");
  EXPECT_TRUE(vmas[1].shared && vmas[1].has(VmFlag::locked) && vmas[1].has(VmFlag::grows_down));
  EXPECT_TRUE(vmas[1].has(VmFlag::no_reserve));
  EXPECT_EQ(vmas[2].range.start.get(), 0xffffffffff600000u);
  EXPECT_EQ(vmas[3].prot, PROT_NONE);
  EXPECT_TRUE(vmas[3].name.empty());
}

TEST(Smaps, RefusesNonsense) {
  for (const char* text : {"4000-", "4000-5000 r", "5000-4000 r-xp 0 0:0 0 x", "4000-5000 r-xp zz 0:0 0"})
    EXPECT_THROW(parse_smaps(text), Corrupt) << text;
}

TEST(Smaps, ReadsItself) {
  const Mapping m(3, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ::madvise(m.page(0), m.bytes(), MADV_DONTDUMP);  // keeps it from merging
  bool found = false;
  for (const Vma& vma : parse_smaps(ProcDir(::getpid()).read("smaps")))
    found |= vma.range == m.range() && vma.has(VmFlag::dont_dump) && !vma.has_file();
  EXPECT_TRUE(found);
}

TEST(PageScan, FindsWrittenPagesBetweenHoles) {
  const Mapping m(64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ::madvise(m.page(0), m.bytes(), MADV_NOHUGEPAGE);
  *m.page(3) = 1;
  *m.page(4) = 1;
  *m.page(60) = 1;
  EXPECT_EQ(scan_one(m), (Pages{{3, 2}, {60, 1}}));
}

// Where reading gives a page of its own, that is one of the task's.
TEST(PageScan, LeavesOutTheZeroPage) {
  const Mapping m(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ::madvise(m.page(0), m.bytes(), MADV_NOHUGEPAGE);
  volatile char c = *m.page(1);
  (void)c;
  *m.page(2) = 1;
  const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
  const RemoteRange range = m.range();
  EXPECT_EQ(pages_of(scan_private_pages(pagemap.get(), {&range, 1}), m.address()),
            kernel_maps_zero_page() ? (Pages{{2, 1}}) : (Pages{{1, 2}}));
}

TEST(PageScan, FindsPagesBehindProtNone) {
  const Mapping m(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  *m.page(1) = 'x';
  ::mprotect(m.page(0), m.bytes(), PROT_NONE);
  EXPECT_EQ(scan_one(m), (Pages{{1, 1}}));
  const Fd mem = open_path("/proc/self/mem", O_RDONLY);
  std::vector<std::byte> page(kPageSize);
  EXPECT_EQ(pread_full(mem.get(), page, m.address(1), "own memory"), kPageSize);
  EXPECT_EQ(page[0], std::byte{'x'});
}

TEST(PageScan, FindsOnlyPrivateCopiesOfFilePages) {
  const TempFile file(8 * kPageSize);
  const Mapping m(8, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.fd());
  volatile char c = *m.page(0);
  (void)c;
  *m.page(5) = 'w';
  EXPECT_EQ(scan_one(m), (Pages{{5, 1}}));
}

TEST(PageScan, FindsHugePages) {
  const Mapping m(3 * 512, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ::madvise(m.page(0), m.bytes(), MADV_HUGEPAGE);
  std::memset(m.page(0), 1, m.bytes());
  EXPECT_EQ(scan_one(m), (Pages{{0, 3 * 512}}));
}

TEST(HugePages, OnlyWholeBlocksOfPagesOfItsOwnAreMadeAgain) {
  const Mapping m(4 * 512, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  std::memset(m.page(0), 1, m.bytes());
  ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  const uint64_t first = (m.address() + kHugePageSize - 1) / kHugePageSize * kHugePageSize;
  char* second = m.page((first + kHugePageSize - m.address()) / kPageSize);
  ::madvise(second + 7 * kPageSize, kPageSize, MADV_DONTNEED);
  const auto self = open_pidfd(::getpid());
  const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
  const auto make = [&](uint64_t block) {
    for (int i = 0;; ++i) {  // the kernel may be using a page of it for a moment
      const Collapsed outcome = collapse_block(self->get(), pagemap.get(), first + block * kHugePageSize);
      if (outcome != Collapsed::later || i == 50) return outcome;
      ::usleep(10'000);
    }
  };
  std::array<int, 2> hold{};
  ASSERT_EQ(::pipe(hold.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(hold[1]);
    char c = 0;
    ::_exit(static_cast<int>(::read(hold[0], &c, 1)));
  }
  EXPECT_EQ(make(0), Collapsed::needless) << "shared with the child";
  ::close(hold[1]);
  ::close(hold[0]);
  ::waitpid(child, nullptr, 0);
  const Collapsed made = make(0);
  if (made == Collapsed::never) GTEST_SKIP() << "MADV_COLLAPSE needs Linux 6.1 or newer";
  EXPECT_EQ(made, Collapsed::done);
  EXPECT_EQ(make(0), Collapsed::needless) << "it is one";
  EXPECT_EQ(make(1), Collapsed::needless) << "it has a hole";
  EXPECT_EQ(*second, 1);
}

TEST(PageScan, GuardRegionsAreNotPages) {
  const Mapping m(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  *m.page(1) = 1;
  constexpr int kInstall = 102;  // MADV_GUARD_INSTALL, 6.13
  if (::madvise(m.page(2), 2 * kPageSize, kInstall) != 0) GTEST_SKIP() << "needs Linux 6.13 or newer";
  EXPECT_EQ(scan_one(m), (Pages{{1, 1}}));
  const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
  const RemoteRange range = m.range();
  EXPECT_EQ(pages_of(scan_guard_pages(pagemap.get(), {&range, 1}), m.address()), (Pages{{2, 2}}));
}

TEST(PageScan, ClipsToWhatIsWanted) {
  const Mapping m(16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  std::memset(m.page(0), 1, m.bytes());
  const std::vector<RemoteRange> wanted{{RemoteAddr(m.address(1)), RemoteAddr(m.address(3))},
                                        {RemoteAddr(m.address(8)), RemoteAddr(m.address(9))}};
  const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
  EXPECT_EQ(pages_of(scan_private_pages(pagemap.get(), wanted), m.address()), (Pages{{1, 2}, {8, 1}}));
}

TEST(PageScan, FindsDataOfMemfds) {
  const Fd memfd(::memfd_create("test", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memfd.get(), 10 * kPageSize + 100), 0);
  pwrite_full(memfd.get(), as_bytes_of("x"), 2 * kPageSize, "memfd");
  pwrite_full(memfd.get(), as_bytes_of("y"), 10 * kPageSize + 50, "memfd");
  EXPECT_EQ(pages_of(scan_object_pages(memfd.get()), 0), (Pages{{2, 1}, {10, 1}}));
}

TEST(PageFiles, WritesPagesAndLeavesOutZeros) {
  const Mapping m(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  *m.page(1) = 'a';
  *m.page(2) = 'b';
  *m.page(6) = 'c';
  char folder[] = "/tmp/page_files.XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const Fd dir = open_path(folder, O_RDONLY | O_DIRECTORY);
  std::vector<PageSource> sources(1);
  sources[0].memory = {MemoryId::Kind::task, 42};
  sources[0].fd = open_path("/proc/self/mem", O_RDONLY);
  sources[0].runs = {{m.address(0), 4, true}, {m.address(5), 2, false}};
  ImageSet images;
  EXPECT_EQ(write_pages(sources, images, dir.get()), 4u);  // 1, 2; 5 (zeros that matter), 6
  auto reader = images.read("pagemap-42.img", magic::kPagemap);
  ASSERT_TRUE(reader);
  img::pagemap_head head;
  ASSERT_TRUE(reader->next(head));
  EXPECT_EQ(head.pages_id(), 1u);
  Pages found;
  for (img::pagemap_entry e; reader->next(e);) found.emplace_back((e.vaddr() - m.address()) / kPageSize, e.nr_pages());
  EXPECT_EQ(found, (Pages{{1, 2}, {5, 2}}));
  const std::string data = read_file_at(dir.get(), "pages-1.img");
  ASSERT_EQ(data.size(), 4 * kPageSize);
  EXPECT_EQ(data[0], 'a');
  EXPECT_EQ(data[kPageSize], 'b');
  EXPECT_EQ(data[2 * kPageSize], 0);
  EXPECT_EQ(data[3 * kPageSize], 'c');
  ::unlinkat(dir.get(), "pages-1.img", 0);
  ::rmdir(folder);
}

}  // namespace
}  // namespace migrate
