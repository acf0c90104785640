// Chains of image folders: pages that stand in a parent, written and found again.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "core/image/magic.h"
#include "core/memory/page_files.h"
#include "core/memory/page_images.h"
#include "images/pagemap.pb.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

constexpr MemoryId kTask{MemoryId::Kind::task, 42};

/// Folders "1", "2", ... beside each other, each with its images.
class Chain : public ::testing::Test {
 protected:
  Fd folder(int number, const char* parent = nullptr) {
    const std::string path = top_ + "/" + std::to_string(number);
    std::filesystem::create_directory(path);
    Fd dir = open_path(path, O_RDONLY | O_DIRECTORY);
    if (parent != nullptr) link_parent(dir.get(), parent);
    return dir;
  }
  static std::vector<std::byte> page_of(char c, uint64_t pages = 1) {
    return std::vector<std::byte>(pages * kPageSize, static_cast<std::byte>(c));
  }
  /// What restoring from `dir` would put at each page of [0, pages): the first byte, 0 where nothing is.
  static std::string content(int dir, uint64_t pages, const std::string& name = "pagemap-42.img") {
    PageImages images(dir);
    std::string text(pages, '.');
    for (const StoredPages& s : images.locate(name)) {
      for (uint64_t at = 0; at < s.bytes; at += kPageSize) {
        char c = 0;
        EXPECT_EQ(::pread(s.fd, &c, 1, static_cast<off_t>(s.offset + at)), 1);
        text.at((s.address + at) / kPageSize) = c;
      }
    }
    return text;
  }
  const TempDir dir_;
  const std::string& top_ = dir_.path();
};

uint64_t place(uint64_t page) { return page * kPageSize; }

TEST_F(Chain, ThreeFoldersReadAsOne) {
  {
    const Fd dir = folder(1);
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    EXPECT_FALSE(pages.open(kTask));
    pages.write(place(0), page_of('a', 4));
    pages.write(place(6), page_of('b', 2));
    pages.finish();
  }
  {
    const Fd dir = folder(2, "../1");
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    EXPECT_TRUE(pages.open(kTask));
    pages.in_parent(place(0), 1);
    pages.write(place(1), page_of('c'));
    pages.in_parent(place(2), 2);
    pages.in_parent(place(7), 1);
    pages.finish();
  }
  const Fd dir = folder(3, "../2");
  ImageSet images;
  PageFolder pages(dir.get(), images, true);
  EXPECT_TRUE(pages.open(kTask));
  pages.in_parent(place(0), 3);  // of two grandparents' files
  pages.write(place(3), page_of('d'));
  pages.in_parent(place(7), 1);
  pages.finish();
  EXPECT_EQ(content(dir.get(), 9), "acad...b.");
  // The entries say so in both of the format's ways.
  auto reader = images.read("pagemap-42.img", magic::kPagemap);
  img::pagemap_head head;
  ASSERT_TRUE(reader->next(head));
  img::pagemap_entry e;
  ASSERT_TRUE(reader->next(e));
  EXPECT_EQ(e.flags(), 1u);
  EXPECT_TRUE(e.in_parent());
  EXPECT_EQ(e.nr_pages(), 3u);
  EXPECT_EQ(e.compat_nr_pages(), 3u);
  ASSERT_TRUE(reader->next(e));
  EXPECT_EQ(e.flags(), 4u);
  EXPECT_FALSE(e.in_parent());
}

TEST_F(Chain, PagesMissingInTheParentAreRefused) {
  {
    const Fd dir = folder(1);
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    pages.open(kTask);
    pages.write(place(1), page_of('a', 2));
    pages.write(place(4), page_of('a'));
    pages.finish();
  }
  const std::pair<uint64_t, uint64_t> wrong[] = {
      {0, 1}, {0, 2}, {1, 3}, {3, 1}, {4, 2}, {5, 1}, {1, uint64_t{1} << 60}};
  for (const auto& [first, count] : wrong) {
    const Fd dir = folder(2, "../1");
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    pages.open(kTask);
    EXPECT_THROW(pages.in_parent(place(first), count), Corrupt) << first << " " << count;
  }
  const Fd dir = folder(3, "../1");
  ImageSet images;
  PageFolder pages(dir.get(), images, true);
  EXPECT_FALSE(pages.open({MemoryId::Kind::shmem, 42}));
  EXPECT_THROW(pages.in_parent(place(1), 1), Corrupt);
}

TEST_F(Chain, HostileOrderAndRanges) {
  const Fd dir = folder(1);
  ImageSet images;
  PageFolder pages(dir.get(), images, true);
  EXPECT_THROW(pages.write(0, page_of('a')), Corrupt);  // of no memory
  pages.open(kTask);
  pages.write(place(5), page_of('a'));
  EXPECT_THROW(pages.write(place(5), page_of('a')), Corrupt);
  EXPECT_THROW(pages.write(place(4), page_of('a')), Corrupt);
  EXPECT_THROW(pages.write(place(6) + 1, page_of('a')), Corrupt);
  EXPECT_THROW(pages.write(uint64_t{1} << 47, page_of('a')), Corrupt);
  EXPECT_THROW(pages.write(~uint64_t{0} - 4095, page_of('a')), Corrupt);
  EXPECT_THROW(pages.in_parent(~uint64_t{0} - 4095, 3), Corrupt);
  EXPECT_THROW(pages.open(kTask), Corrupt);
}

TEST_F(Chain, AFolderWithoutPagemapIsNotMemoryOfZeros) {
  const Fd dir = folder(1);
  ImageSet images;
  PageFolder pages(dir.get(), images, true);
  pages.open(kTask);
  pages.write(0, page_of('a'));  // and the writer dies
  EXPECT_THROW(PageImages(dir.get()).locate("pagemap-42.img"), Corrupt);
}

TEST_F(Chain, EndlessParentsAreNoticed) {
  {
    const Fd dir = folder(1);
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    pages.open(kTask);
    pages.write(0, page_of('a'));
    pages.finish();
  }
  const Fd dir = folder(2, "../1");
  {
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    pages.open(kTask);
    pages.in_parent(0, 1);
    pages.finish();
  }
  std::filesystem::remove_all(top_ + "/1");
  EXPECT_THROW(PageImages(dir.get()).locate("pagemap-42.img"), Error);
  std::filesystem::create_symlink("2", top_ + "/1");
  EXPECT_THROW(PageImages(dir.get()).locate("pagemap-42.img"), Corrupt);
}

TEST_F(Chain, LinksToNowhereOrItselfAreRefused) {
  const Fd dir = folder(1);
  EXPECT_THROW(link_parent(dir.get(), "../none"), Refusal);
  EXPECT_THROW(link_parent(dir.get(), "."), Refusal);
  EXPECT_THROW(link_parent(dir.get(), "../1"), Refusal);
  unlink_parent(dir.get());
  unlink_parent(dir.get());
}

TEST(PageSets, AreSetsOfPages) {
  std::mt19937 random(7);
  const auto some = [&](std::vector<bool>& bits) {
    PageSet pages;
    for (uint64_t page = 0; page < bits.size(); ++page) {
      bits[page] = random() % 3 != 0;
      if (bits[page]) pages.append(place(page), place(page + 1));
    }
    return pages;
  };
  const auto bits_of = [](const PageSet& pages, size_t size) {
    std::vector<bool> bits(size);
    for (uint64_t i = 0; i < size; ++i) bits[i] = pages.contains(place(i));
    return bits;
  };
  for (int round = 0; round < 200; ++round) {
    std::vector<bool> a(64), b(64), both(64), either(64), only_a(64);
    const PageSet pages_a = some(a), pages_b = some(b);
    for (size_t i = 0; i < a.size(); ++i) {
      both[i] = a[i] && b[i];
      either[i] = a[i] || b[i];
      only_a[i] = a[i] && !b[i];
    }
    EXPECT_EQ(bits_of(pages_a & pages_b, 64), both);
    EXPECT_EQ(bits_of(pages_a | pages_b, 64), either);
    EXPECT_EQ(bits_of(pages_a - pages_b, 64), only_a);
    EXPECT_EQ(pages_a.pages(), static_cast<uint64_t>(std::count(a.begin(), a.end(), true)));
    const std::vector<PageRun> runs = runs_of(pages_a, pages_b);
    EXPECT_EQ(pages_of(runs), pages_a);
    EXPECT_EQ(pages_of(runs_without(runs, pages_b)), pages_a - pages_b);
    for (const PageRun& run : runs) EXPECT_EQ(run.zero_ok, !pages_b.contains(run.address));
    for (const PageRun& run : runs_without(runs, pages_b)) EXPECT_TRUE(run.zero_ok);
  }
  EXPECT_TRUE(PageSet(place(1), place(4)).contains(place(1), place(4)));
  EXPECT_FALSE(PageSet(place(1), place(4)).contains(place(3), place(5)));
}

/// Memory of this process as a source.
PageSource own_memory(const char* start, std::vector<PageRun> pages, bool may_vanish = false) {
  PageSource source{.memory = kTask, .runs = {}, .fd = open_path("/proc/self/mem", O_RDONLY), .may_vanish = may_vanish};
  for (PageRun run : pages)
    source.runs.push_back({reinterpret_cast<uint64_t>(start) + place(run.address), run.pages, run.zero_ok});
  return source;
}

TEST_F(Chain, WritesWhatChangedAndKeepsTheRest) {
  constexpr uint64_t kPages = 600;
  char* memory =
      static_cast<char*>(::mmap(nullptr, place(kPages), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(memory, 'a', place(kPages));
  std::memset(memory + place(10), 0, kPageSize);
  const uint64_t base = reinterpret_cast<uint64_t>(memory);
  PagesByMemory stored;
  {
    const Fd dir = folder(1);
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    const PageSource source = own_memory(memory, {{0, kPages, true}});
    const WrittenPages w = write_pages(std::span(&source, 1), {}, pages);
    EXPECT_EQ(w.written, kPages - 1);
    EXPECT_EQ(w.stored.at(kTask).pages(), kPages - 1);
    stored = w.stored;
  }
  memory[place(3)] = 'b';
  memory[place(500)] = 'c';
  memory[place(10)] = 'd';
  const std::vector<PageRun> changed = {
      {base + place(3), 1, true}, {base + place(10), 1, true}, {base + place(500), 1, true}};
  const Fd dir = folder(2, "../1");
  ImageSet images;
  PageFolder pages(dir.get(), images, true);
  PageSource source = own_memory(memory, {});
  source.runs = changed;
  const PagesByMemory unchanged{{kTask, stored.at(kTask) - pages_of(changed)}};
  const WrittenPages w = write_pages(std::span(&source, 1), unchanged, pages);
  EXPECT_EQ(w.written, 3u);
  EXPECT_EQ(w.in_parent, kPages - 3);
  EXPECT_EQ(w.stored.at(kTask).pages(), kPages);
  PageImages read(dir.get());
  uint64_t found = 0;
  for (const StoredPages& s : read.locate("pagemap-42.img")) {
    std::vector<std::byte> data(s.bytes);
    ASSERT_EQ(pread_full(s.fd, data, s.offset, "pages"), s.bytes);
    EXPECT_EQ(std::memcmp(data.data(), memory + (s.address - base), s.bytes), 0);
    found += s.bytes / kPageSize;
  }
  EXPECT_EQ(found, kPages);
  ::munmap(memory, place(kPages));
}

TEST_F(Chain, APageSourceWithoutParentIsRefused) {
  const Fd dir = folder(1);
  ImageSet images;
  PageFolder pages(dir.get(), images, true);
  const PageSource source = own_memory(nullptr, {});
  EXPECT_THROW(write_pages(std::span(&source, 1), {{kTask, PageSet(place(1), place(2))}}, pages), Refusal);
}

TEST_F(Chain, PagesThatVanishAreLeftOut) {
  char* memory =
      static_cast<char*>(::mmap(nullptr, place(8), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(memory, 'a', place(8));
  // Behind the end of its file, so that nothing else gets mapped there meanwhile.
  const Fd empty(::memfd_create("empty", MFD_CLOEXEC));
  ASSERT_NE(::mmap(memory + place(2), place(3), PROT_READ, MAP_SHARED | MAP_FIXED, empty.get(), 0), MAP_FAILED);
  const Fd dir = folder(1);
  for (const bool may_vanish : {true, false}) {
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    const PageSource source = own_memory(memory, {{0, 8, true}}, may_vanish);
    if (!may_vanish) {
      EXPECT_THROW(write_pages(std::span(&source, 1), {}, pages), Error);
      continue;
    }
    const WrittenPages w = write_pages(std::span(&source, 1), {}, pages);
    EXPECT_EQ(w.written, 5u);
    const uint64_t base = reinterpret_cast<uint64_t>(memory);
    const auto located = PageImages(dir.get()).locate("pagemap-42.img");
    ASSERT_EQ(located.size(), 2u);
    EXPECT_EQ(located[0].address, base);
    EXPECT_EQ(located[0].bytes, place(2));
    EXPECT_EQ(located[1].address, base + place(5));
    EXPECT_EQ(located[1].bytes, place(3));
  }
  ::munmap(memory, place(8));
}

/// A lazy dump: pages that are not put stand between the others in order, as such that no folder has.
TEST_F(Chain, PagesThatAreLeftAreOnlyNamed) {
  {
    const Fd dir = folder(1);
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    PageSet left(place(0), place(1));
    left.append(place(3), place(5));
    left.append(place(9), place(12));
    pages.leave({{kTask, left}, {{MemoryId::Kind::task, 43}, PageSet(place(0), place(2))}});
    pages.open(kTask);
    pages.write(place(1), page_of('a', 2));
    pages.write(place(5), page_of('b'));
    pages.open({MemoryId::Kind::task, 43});
    pages.finish();
    EXPECT_EQ(pages.pages_written(), 3u);
  }
  const Fd dir = folder(1);
  PageImages images(dir.get());
  std::string text;
  for (const StoredPages& s : images.locate("pagemap-42.img"))
    text += std::to_string(s.address / kPageSize) + "+" + std::to_string(s.bytes / kPageSize) + (s.fd < 0 ? "?" : "") +
            (s.lazy ? "lazy " : " ");
  EXPECT_EQ(text, "0+1?lazy 1+2 3+2?lazy 5+1 9+3?lazy ");
  EXPECT_EQ(only_named(images.locate("pagemap-42.img")).pages(), 6u);
  EXPECT_EQ(only_named(images.locate("pagemap-43.img")).pages(), 2u);
  // A folder that only names pages is no parent that has them.
  const Fd child = folder(2, "../1");
  ImageSet more;
  PageFolder pages(child.get(), more, true);
  EXPECT_TRUE(pages.open(kTask));
  EXPECT_THROW(pages.in_parent(place(0), 1), Corrupt);
  pages.in_parent(place(1), 2);
}

TEST_F(Chain, PagesAreNotBothStoredAndLeft) {
  for (const uint64_t page : {1u, 2u, 3u, 4u}) {
    const Fd dir = folder(static_cast<int>(10 + page));
    ImageSet images;
    PageFolder pages(dir.get(), images, true);
    pages.leave({{kTask, PageSet(place(2), place(4))}});
    pages.open(kTask);
    if (page == 4) {
      pages.write(place(page), page_of('a', 2));
    } else {
      EXPECT_THROW(pages.write(place(page), page_of('a', 2)), Corrupt) << page;
    }
  }
}

}  // namespace
}  // namespace migrate
