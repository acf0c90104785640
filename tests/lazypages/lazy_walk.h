// A program that does everything to its memory that memory lets be done, and knows every byte of it.
#pragma once

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "tests/lazypages/lazy_program.h"

namespace migrate::lazy_testing {

class Walk {
 public:
  /// `first`: what number the page at `base` was at the source.
  Walk(char* base, uint64_t pages, uint64_t seed, Talk& talk, uint64_t first = 0)
      : random_(seed), talk_(talk), seed_(seed) {
    Area all{base, {}};
    for (uint64_t i = first; i < first + pages; ++i) all.pages.push_back(exists(i) ? Page{Page::source, i} : Page{});
    arena_ = static_cast<char*>(::mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    areas_.push_back(all);
  }

  /// Exit code: 0 if every byte was as it should.
  int run(int steps, int depth) {
    depth_ = depth;
    for (int i = 0; i < steps && good_; ++i) step();
    check_all();
    for (const pid_t child : children_) {
      int status = 0;
      ::waitpid(child, &status, 0);
      if (status != 0) trouble("a child ended with", static_cast<uint64_t>(status), 0);
    }
    return good_ ? 0 : 1;
  }

 private:
  struct Page {
    enum Kind : uint8_t { zeros, source, written } kind = zeros;
    uint64_t value = 0;
    bool freed = false;  ///< zeros do as well
  };
  struct Area {
    char* at;
    std::vector<Page> pages;
  };
  static constexpr uint64_t kArena = 1 << 30;

  uint64_t below(uint64_t n) { return random_() % n; }
  void trouble(const char* what, uint64_t a, uint64_t b) {
    if (good_ && talk_.trouble[0] == 0)
      std::snprintf(talk_.trouble.data(), talk_.trouble.size(), "seed %lu depth %d: %s %lx %lx (last: %s)", seed_,
                    depth_, what, a, b, last_);
    good_ = false;
  }

  void check_page(const char* at, const Page& page) {
    const auto* words = reinterpret_cast<const volatile uint64_t*>(at);
    const bool zero = page.kind == Page::zeros || (page.freed && words[0] == 0);
    for (uint64_t w = 0; w < 512; ++w) {
      const uint64_t expected = zero ? 0 : page.kind == Page::source ? word_of(page.value, w) : page.value + w;
      if (const uint64_t got = words[w]; got != expected)
        return trouble(got == 0 ? "zeros for page" : "a wrong byte in page", page.value,
                       reinterpret_cast<uint64_t>(at));
    }
  }
  void check_all() {
    std::vector<std::pair<const char*, const Page*>> all;
    for (const Area& area : areas_)
      for (size_t i = 0; i < area.pages.size(); ++i) all.emplace_back(area.at + i * kPageSize, &area.pages[i]);
    std::shuffle(all.begin(), all.end(), random_);
    for (const auto& [at, page] : all) {
      check_page(at, *page);
      if (!good_) return;
    }
  }
  void write_page(char* at, Page& page) {
    page = {Page::written, random_() | 1, false};
    auto* words = reinterpret_cast<volatile uint64_t*>(at);
    for (uint64_t w = 0; w < 512; ++w) words[w] = page.value + w;
  }

  /// Nothing is at the first `count` pages of `area` any more that we know of.
  void forget(size_t area, size_t first, size_t count) {
    Area& a = areas_[area];
    const auto f = a.pages.begin() + static_cast<ptrdiff_t>(first), l = f + static_cast<ptrdiff_t>(count);
    Area behind{a.at + (first + count) * kPageSize, {l, a.pages.end()}};
    a.pages.erase(f, a.pages.end());
    if (!behind.pages.empty()) areas_.push_back(behind);
  }
  char* fresh(size_t pages) {
    if (used_ + (pages + 8) * kPageSize > kArena) used_ = 0;
    char* at = arena_ + used_;
    used_ += (pages + 8) * kPageSize;
    return at;
  }

  void step();
  void move(size_t area);
  void resize(size_t area);
  void discard(Area& area, size_t first, size_t count);
  void protect(Area& area, size_t first, size_t count);
  void through_kernel(Area& area, size_t page);
  void have_child();

  std::mt19937_64 random_;
  Talk& talk_;
  uint64_t seed_;
  int depth_ = 0;
  bool good_ = true;
  const char* last_ = "";
  std::vector<Area> areas_;
  char* arena_;
  uint64_t used_ = 0;
  std::vector<pid_t> children_;
};

inline void Walk::step() {
  ++talk_.progress;
  std::erase_if(areas_, [](const Area& a) { return a.pages.empty(); });
  if (areas_.empty()) return;
  const size_t which = below(areas_.size());
  Area& area = areas_[which];
  const size_t first = below(area.pages.size()), count = 1 + below(std::min<size_t>(area.pages.size() - first, 24));
  switch (below(20)) {
    case 0:
      return have_child();
    case 1:
    case 2:
      return move(which);
    case 3:
      return resize(which);
    case 4:
    case 5:
      return discard(area, first, count);
    case 6:
      return protect(area, first, count);
    case 7:
      if (below(3) != 0) return;
      last_ = "munmap";
      ::munmap(area.at + first * kPageSize, count * kPageSize);
      return forget(which, first, count);
    case 8:
    case 9:
      return through_kernel(area, first);
    case 10:
    case 11:
      return write_page(area.at + first * kPageSize, area.pages[first]);
    default:
      for (size_t i = first; i < first + std::min<size_t>(count, 4); ++i)
        check_page(area.at + i * kPageSize, area.pages[i]);
  }
}

/// mremap(2) of a part: to a free place, or over another area; the old place stays now and then.
inline void Walk::move(size_t which) {
  const size_t size = areas_[which].pages.size(), first = below(size),
               count = 1 + below(std::min<size_t>(size - first, 40));
  char* to = fresh(count);
  size_t over = areas_.size();
  if (below(3) == 0) {
    over = below(areas_.size());
    if (over != which && areas_[over].pages.size() >= count) {
      to = areas_[over].at;
    } else {
      over = areas_.size();
    }
  }
  const bool stays = below(4) == 0;
  last_ = stays ? "mremap that leaves the old place" : over < areas_.size() ? "mremap over another" : "mremap";
  char* from = areas_[which].at + first * kPageSize;
  const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0);
  const bool moved = ::mremap(from, count * kPageSize, count * kPageSize, flags, to) != MAP_FAILED;
  if (over < areas_.size()) forget(over, 0, count);  // also if it failed: it may be gone, or not
  if (!moved) {
    // Half of it may have moved, where part of it is registered still and the rest no more (Linux 6.17).
    if (talk_.ends_meanwhile) forget(which, first, count);
    return;
  }
  Area& area = areas_[which];
  const auto f = area.pages.begin() + static_cast<ptrdiff_t>(first);
  Area there{to, {f, f + static_cast<ptrdiff_t>(count)}};
  if (stays) {
    std::fill_n(f, count, Page{});
  } else {
    forget(which, first, count);
  }
  areas_.push_back(there);
}

/// mremap(2) of a whole area to another size.
inline void Walk::resize(size_t which) {
  Area& area = areas_[which];
  const size_t size = area.pages.size(), to = 1 + below(size + 16);
  last_ = to < size ? "mremap that shrinks" : "mremap that grows";
  const bool fixed = below(2) == 0;
  char* target = fixed ? fresh(to) : nullptr;
  void* at = ::mremap(area.at, size * kPageSize, to * kPageSize, MREMAP_MAYMOVE | (fixed ? MREMAP_FIXED : 0), target);
  if (at == MAP_FAILED) {
    if (talk_.ends_meanwhile) forget(which, 0, size);
    return;
  }
  area.at = static_cast<char*>(at);
  area.pages.resize(to);
}

inline void Walk::discard(Area& area, size_t first, size_t count) {
  const bool free = below(3) == 0;
  last_ = free ? "MADV_FREE" : "MADV_DONTNEED";
  if (::madvise(area.at + first * kPageSize, count * kPageSize, free ? MADV_FREE : MADV_DONTNEED) != 0) return;
  for (size_t i = first; i < first + count; ++i) {
    if (free) {
      area.pages[i].freed = true;
    } else {
      area.pages[i] = {};
    }
  }
}

inline void Walk::protect(Area& area, size_t first, size_t count) {
  last_ = "mprotect";
  ::mprotect(area.at + first * kPageSize, count * kPageSize, PROT_READ);
  check_page(area.at + first * kPageSize, area.pages[first]);
  ::mprotect(area.at + first * kPageSize, count * kPageSize, PROT_READ | PROT_WRITE);
}

/// The kernel reads the page, or writes to it, for us.
inline void Walk::through_kernel(Area& area, size_t page) {
  last_ = "write(2) and read(2)";
  int ends[2];
  if (::pipe(ends) != 0) return trouble("no pipe", 0, 0);
  alignas(8) char copy[kPageSize];
  char* at = area.at + page * kPageSize;
  if (::write(ends[1], at, kPageSize) != static_cast<ssize_t>(kPageSize) ||
      ::read(ends[0], copy, kPageSize) != static_cast<ssize_t>(kPageSize))
    trouble("a pipe took no page", page, 0);
  check_page(copy, area.pages[page]);
  write_page(copy, area.pages[page]);
  if (::write(ends[1], copy, kPageSize) != static_cast<ssize_t>(kPageSize) ||
      ::read(ends[0], at, kPageSize) != static_cast<ssize_t>(kPageSize))
    trouble("a pipe gave no page", page, 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

inline void Walk::have_child() {
  if (depth_ >= 2 || children_.size() >= 12) return;
  last_ = "fork";
  const uint64_t seed = random_();
  if (below(8) == 0) {  // as vfork(2)
    pid_t other = 0;
    char name[] = "true";
    char* arguments[] = {name, nullptr};
    if (::posix_spawn(&other, "/bin/true", nullptr, nullptr, arguments, nullptr) == 0) children_.push_back(other);
    return;
  }
  const pid_t child = ::fork();
  if (child < 0) return trouble("no child", 0, 0);
  if (child > 0) {
    children_.push_back(child);
    return;
  }
  children_.clear();
  random_.seed(seed);
  ++depth_;
  switch (below(8)) {
    case 0:
      ::_exit(0);
    case 1:
      ::execl("/bin/true", "true", nullptr);
      ::_exit(1);
    case 2:
      ::_exit(run(40, depth_));
    default:
      check_all();
      ::_exit(good_ ? 0 : 1);
  }
}

}  // namespace migrate::lazy_testing
