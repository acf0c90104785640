// Memory of the workload `wild`: mappings that come, grow, shrink, move and go, and what each page must hold.
#pragma once

#include <algorithm>
#include <vector>

#include "workload.h"

namespace wild {

using workload::expect;
using workload::must;

constexpr size_t page_size = 4096;

/// Repeatable numbers; its state is handed over an execve(2).
struct Random {
  uint64_t state = 1;
  uint64_t next() {
    uint64_t z = (state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  size_t below(size_t n) { return n == 0 ? 0 : static_cast<size_t>(next() % n); }
  bool chance(unsigned percent) { return below(100) < percent; }
};

inline uint64_t word_of(uint64_t id, size_t page, uint32_t version, size_t word) {
  const uint64_t x = (id * 0x9E3779B97F4A7C15ULL) ^ (uint64_t{page} << 40) ^ (uint64_t{version} << 12) ^ word;
  return (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9ULL;
}

/// Fills a page so that its place, owner and version show in every word.
inline void write_page(void* at, uint64_t id, size_t page, uint32_t version) {
  auto* words = static_cast<uint64_t*>(at);
  for (size_t w = 0; w < page_size / 8; ++w) words[w] = word_of(id, page, version, w);
}

/// Version 0 is a page of zeros.
inline void verify_page(const void* at, uint64_t id, size_t page, uint32_t version, const std::string& what) {
  const auto* words = static_cast<const uint64_t*>(at);
  for (size_t w = 0; w < page_size / 8; ++w) {
    const uint64_t want = version == 0 ? 0 : word_of(id, page, version, w);
    if (words[w] == want) continue;
    throw std::runtime_error(what + ": page " + std::to_string(page) + " of " + std::to_string(id) + " holds " +
                             std::to_string(words[w]) + " at word " + std::to_string(w) + " instead of version " +
                             std::to_string(version));
  }
}

enum class AreaKind { anonymous, shared, file };

/// A mapping and the version of each of its pages.
struct Area {
  std::byte* at = nullptr;
  AreaKind kind = AreaKind::anonymous;
  bool read_only = false;
  uint64_t id = 0;
  std::vector<uint32_t> versions;  // of a file's private pages: 0 is the file's content

  size_t length() const { return versions.size() * page_size; }
};

/// The mappings of one process. A child that was forked has them too, but must let the shared ones go.
class Memory {
 public:
  /// `file`: a readable file of file_pages pages, page i being version 1 of id 0.
  Memory(Random& random, const std::string& file) : random_(random), file_(file) {}

  static constexpr size_t file_pages = 64;
  static constexpr size_t most_areas = 24;

  static void make_file(const std::string& path) {
    const int fd = must(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), "open the pages' file");
    std::vector<uint64_t> page(page_size / 8);
    for (size_t i = 0; i < file_pages; ++i) {
      write_page(page.data(), 0, i, 1);
      expect(::write(fd, page.data(), page_size) == ssize_t{page_size}, "write to the pages' file");
    }
    close(fd);
  }

  void step() {
    if (areas_.empty() || (areas_.size() < most_areas && random_.chance(15))) return map();
    Area& area = areas_[random_.below(areas_.size())];
    switch (random_.below(9)) {
      case 0:
        return resize(area);
      case 1:
        return protect(area);
      case 2:
        return discard(area);
      case 3:
        return random_.chance(40) ? unmap(area) : verify(area);
      case 4:
        return grow_heap();
      case 5:
        return verify(area);
      default:
        return write(area);
    }
  }

  void verify_all() const {
    for (const Area& area : areas_) verify(area);
    verify_heap();
  }

  /// In a forked child: what is shared with the parent belongs to the parent.
  void forget_shared() {
    std::erase_if(areas_, [](const Area& a) {
      if (a.kind == AreaKind::shared) munmap(a.at, a.length());
      return a.kind == AreaKind::shared;
    });
  }

  /// A shared mapping's first page, for a child to write; null if there is none.
  Area* any_shared() {
    for (Area& a : areas_)
      if (a.kind == AreaKind::shared && !a.read_only) return &a;
    return nullptr;
  }

  static void write_version(Area& area, size_t page, uint32_t version) {
    write_page(area.at + page * page_size, area.id, page, version);
  }

 private:
  void map() {
    Area a;
    a.id = random_.next() | 1;
    a.kind = static_cast<AreaKind>(random_.below(3));
    const size_t most = a.kind == AreaKind::file ? file_pages : random_.chance(5) ? 1100 : 48;
    a.versions.assign(1 + random_.below(most), 0);
    int fd = -1;
    if (a.kind == AreaKind::file) fd = must(open(file_.c_str(), O_RDONLY | O_CLOEXEC), "open the pages' file");
    const int flags = a.kind == AreaKind::anonymous ? MAP_PRIVATE | MAP_ANONYMOUS
                      : a.kind == AreaKind::shared  ? MAP_SHARED | MAP_ANONYMOUS
                                                    : MAP_PRIVATE;
    void* at = mmap(nullptr, a.length(), PROT_READ | PROT_WRITE, flags, fd, 0);
    if (fd != -1) close(fd);
    expect(at != MAP_FAILED, "mmap failed");
    a.at = static_cast<std::byte*>(at);
    if (a.kind == AreaKind::anonymous && random_.chance(20)) madvise(a.at, a.length(), MADV_HUGEPAGE);
    areas_.push_back(std::move(a));
    write(areas_.back());
  }

  void unmap(Area& area) {
    verify(area);
    must(munmap(area.at, area.length()), "munmap");
    areas_.erase(areas_.begin() + (&area - areas_.data()));
  }

  /// mremap(2). A shared object keeps its size, and what is behind its end would be SIGBUS: those only shrink.
  void resize(Area& area) {
    if (area.read_only) return;
    const size_t most = area.kind == AreaKind::anonymous ? area.versions.size() * 2 : area.versions.size();
    const size_t pages = 1 + random_.below(std::min<size_t>(most, 2000));
    void* at = mremap(area.at, area.length(), pages * page_size, MREMAP_MAYMOVE);
    if (at == MAP_FAILED)
      throw std::runtime_error("mremap from " + std::to_string(area.versions.size()) + " to " + std::to_string(pages) +
                               " pages: " + std::strerror(errno));
    area.at = static_cast<std::byte*>(at);
    area.versions.resize(pages, 0);
  }

  void protect(Area& area) {
    area.read_only = !area.read_only;
    must(mprotect(area.at, area.length(), area.read_only ? PROT_READ : PROT_READ | PROT_WRITE), "mprotect");
  }

  void discard(Area& area) {
    const size_t first = random_.below(area.versions.size());
    const size_t count = 1 + random_.below(area.versions.size() - first);
    if (area.kind == AreaKind::shared && area.read_only) return;
    must(madvise(area.at + first * page_size, count * page_size,
                 area.kind == AreaKind::shared ? MADV_REMOVE : MADV_DONTNEED),
         "madvise");
    std::fill_n(area.versions.begin() + static_cast<std::ptrdiff_t>(first), count, 0);
  }

  void write(Area& area) {
    if (area.read_only) return;
    const size_t first = random_.below(area.versions.size());
    const size_t count = 1 + random_.below(std::min<size_t>(area.versions.size() - first, 64));
    for (size_t i = first; i < first + count; ++i) write_version(area, i, area.versions[i] = ++version_);
  }

  static void verify(const Area& area) {
    const char* names[] = {"anonymous memory", "shared memory", "private file memory"};
    for (size_t i = 0; i < area.versions.size(); ++i) {
      const bool of_file = area.kind == AreaKind::file && area.versions[i] == 0;
      verify_page(area.at + i * page_size, of_file ? 0 : area.id, i, of_file ? 1 : area.versions[i],
                  names[static_cast<size_t>(area.kind)]);
    }
  }

  /// brk(2), in single pages above whatever malloc took; shrinks only while nobody has taken more.
  void grow_heap() {
    verify_heap();
    auto* end = static_cast<std::byte*>(break_by(0));
    if (!heap_.empty() && heap_.back() + page_size == end && (heap_.size() > 40 || random_.chance(45))) {
      must(brk(heap_.back()), "brk");
      heap_.pop_back();
      return;
    }
    if (heap_.size() > 80) return;
    const size_t odd = reinterpret_cast<uintptr_t>(end) % page_size;
    if (odd != 0) break_by(static_cast<intptr_t>(page_size - odd));
    auto* at = static_cast<std::byte*>(break_by(page_size));
    for (size_t w = 0; w < page_size / 8; ++w) expect(reinterpret_cast<uint64_t*>(at)[w] == 0, "new heap is not zero");
    write_page(at, heap_id, heap_.size(), 1);
    heap_.push_back(at);
  }

  static void* break_by(intptr_t n) {
    void* before = sbrk(n);
    expect(before != reinterpret_cast<void*>(-1), std::string("sbrk: ") + std::strerror(errno));
    return before;
  }

  void verify_heap() const {
    for (size_t i = 0; i < heap_.size(); ++i) verify_page(heap_[i], heap_id, i, 1, "heap");
  }

  static constexpr uint64_t heap_id = 77;

  Random& random_;
  std::string file_;
  std::vector<Area> areas_;
  std::vector<std::byte*> heap_;
  uint32_t version_ = 0;
};

}  // namespace wild
