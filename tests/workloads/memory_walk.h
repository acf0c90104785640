// Everything that can be done to memory, done to it at random by who knows every byte of it.
#pragma once

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace memory_walk {

inline constexpr uint64_t kPage = 4096;

/// Word `word` of the contents that are called `value`; never 0.
inline uint64_t word_of(uint64_t value, uint64_t word) {
  uint64_t x = (value * 512 + word + 1) * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  return (x ^ (x >> 27)) | 1;
}
inline void write_words(void* page, uint64_t value) {
  auto* words = static_cast<volatile uint64_t*>(page);
  for (uint64_t w = 0; w < kPage / 8; ++w) words[w] = word_of(value, w);
}

struct Page {
  bool zeros = true;
  uint64_t value = 0;
  bool freed = false;  ///< MADV_FREE: zeros do as well

  static Page holding(uint64_t value) { return {false, value}; }
};
struct Area {
  char* at = nullptr;
  std::vector<Page> pages;
};

/// Whom a walk tells, and asks.
struct Surroundings {
  std::atomic<uint64_t>* progress = nullptr;
  std::function<void(const std::string&)> trouble;         ///< what is wrong; the walk ends
  std::function<void()> rest = [] {};                      ///< between two steps, or two pages that a child reads
  std::function<void(Surroundings&)> in_child;             ///< first thing in a child
  std::function<void()> child_ends = [] {};                ///< its last
  std::function<bool()> check_more = [] { return true; };  ///< in a child: memory that the walk knows nothing of
  std::vector<std::string> executed = {"/bin/true"};       ///< a child's program; exits with 0
  size_t most_children = 12;
};

/// One thread's walk, on areas that nobody else touches.
class Walk {
 public:
  Walk(std::vector<Area> areas, uint64_t seed, Surroundings around)
      : random_(seed), around_(std::move(around)), seed_(seed), areas_(std::move(areas)) {}

  /// Exit code: 0 if every byte was as it should.
  int run(int steps, int depth) {
    depth_ = depth;
    for (int i = 0; i < steps && good_; ++i) step();
    check_all();
    while (!children_.empty()) reap(0);
    return good_ ? 0 : 1;
  }

  void step();
  /// All of it, in random order.
  void check_all();
  /// The oldest child, if it has ended; `options` 0: when it has.
  void reap(int options);
  bool good() const { return good_; }
  /// Of mremap(2): done, and failed.
  uint64_t moves() const { return moves_; }
  uint64_t refused() const { return refused_; }
  size_t children() const { return children_.size(); }
  /// There are to be so many pages again, whatever was unmapped or grown.
  void have(size_t pages);

 private:
  uint64_t below(uint64_t n) { return random_() % n; }
  void trouble(const char* what, uint64_t a, uint64_t b) {
    if (good_) {
      char text[256];
      std::snprintf(text, sizeof text, "seed %lu depth %d: %s %lx %lx (last: %s)", seed_, depth_, what, a, b, last_);
      around_.trouble(text);
    }
    good_ = false;
  }

  void check_page(const char* at, const Page& page) {
    const auto* words = reinterpret_cast<const volatile uint64_t*>(at);
    const bool zero = page.zeros || (page.freed && words[0] == 0);
    for (uint64_t w = 0; w < kPage / 8; ++w) {
      const uint64_t expected = zero ? 0 : word_of(page.value, w);
      if (const uint64_t got = words[w]; got != expected)
        return trouble(got == 0 ? "zeros for page" : "a wrong byte in page", page.value,
                       reinterpret_cast<uint64_t>(at));
    }
  }
  void write_page(char* at, Page& page) {
    page = Page::holding(random_() | 1);
    write_words(at, page.value);
  }

  /// Nothing is at `count` pages of an area any more that we know of.
  void forget(size_t area, size_t first, size_t count) {
    Area& a = areas_[area];
    const auto f = a.pages.begin() + static_cast<ptrdiff_t>(first), l = f + static_cast<ptrdiff_t>(count);
    Area behind{a.at + (first + count) * kPage, {l, a.pages.end()}};
    a.pages.erase(f, a.pages.end());
    if (!behind.pages.empty()) areas_.push_back(behind);
  }
  void drop(size_t area, size_t first, size_t count) {
    ::munmap(areas_[area].at + first * kPage, count * kPage);
    forget(area, first, count);
  }
  /// Addresses that are ours alone.
  char* fresh(size_t pages) {
    void* at = ::mmap(nullptr, pages * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) trouble("no addresses", pages, 0);
    return static_cast<char*>(at);
  }
  void move(size_t area);
  void resize(size_t area);
  void discard(Area& area, size_t first, size_t count);
  void map_over(Area& area, size_t first, size_t count);
  void protect(Area& area, size_t first, size_t count);
  void through_kernel(Area& area, size_t page);
  void have_child();
  [[noreturn]] void be_child(uint64_t seed);
  [[noreturn]] void end_child(int code) {
    around_.child_ends();
    ::_exit(code);
  }

  std::mt19937_64 random_;
  Surroundings around_;
  uint64_t seed_;
  int depth_ = 0;
  bool good_ = true, only_reads_ = false;
  const char* last_ = "";
  std::vector<Area> areas_;
  std::vector<pid_t> children_;
  uint64_t moves_ = 0, refused_ = 0;
};

inline void Walk::step() {
  ++*around_.progress;
  around_.rest();
  std::erase_if(areas_, [](const Area& a) { return a.pages.empty(); });
  if (areas_.empty()) return;
  const size_t which = below(areas_.size());
  Area& area = areas_[which];
  const size_t first = below(area.pages.size()), count = 1 + below(std::min<size_t>(area.pages.size() - first, 24));
  switch (below(21)) {
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
      return drop(which, first, count);
    case 8:
    case 9:
      return through_kernel(area, first);
    case 10:
    case 11:
      return write_page(area.at + first * kPage, area.pages[first]);
    case 12:
      return map_over(area, first, count);
    default:
      for (size_t i = first; i < first + std::min<size_t>(count, 4); ++i)
        check_page(area.at + i * kPage, area.pages[i]);
  }
}

inline void Walk::check_all() {
  std::vector<std::pair<const char*, const Page*>> all;
  for (const Area& area : areas_)
    for (size_t i = 0; i < area.pages.size(); ++i) all.emplace_back(area.at + i * kPage, &area.pages[i]);
  std::shuffle(all.begin(), all.end(), random_);
  for (const auto& [at, page] : all) {
    check_page(at, *page);
    ++*around_.progress;
    if (only_reads_) around_.rest();
    if (!good_) return;
  }
}

/// mremap(2) of a part: to a free place, or over another area; the old place stays now and then.
inline void Walk::move(size_t which) {
  const size_t size = areas_[which].pages.size(), first = below(size),
               count = 1 + below(std::min<size_t>(size - first, 40));
  size_t over = below(3) == 0 ? below(areas_.size()) : areas_.size();
  if (over == which || (over < areas_.size() && areas_[over].pages.size() < count)) over = areas_.size();
  char* to = over < areas_.size() ? areas_[over].at : fresh(count);
  const bool stays = below(4) == 0;
  last_ = stays ? "mremap that leaves the old place" : over < areas_.size() ? "mremap over another" : "mremap";
  char* from = areas_[which].at + first * kPage;
  const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0);
  const bool moved = ::mremap(from, count * kPage, count * kPage, flags, to) != MAP_FAILED;
  // Also if it failed: it may be gone, or not.
  if (over < areas_.size()) forget(over, 0, count);
  if (!moved) {
    // Lazy memory that is given back or was tracked has seams, and half of it may have moved (Linux 6.17). Nobody knows
    // what is where, and the place of what has left may be another thread's: nothing is unmapped.
    ++refused_;
    return forget(which, first, count);
  }
  ++moves_;
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
  char* target = below(2) == 0 ? fresh(to) : nullptr;
  void* at = ::mremap(area.at, size * kPage, to * kPage, MREMAP_MAYMOVE | (target ? MREMAP_FIXED : 0), target);
  if (at == MAP_FAILED) {
    ++refused_;
    return forget(which, 0, size);
  }
  ++moves_;
  area.at = static_cast<char*>(at);
  area.pages.resize(to);
}

inline void Walk::discard(Area& area, size_t first, size_t count) {
  const bool free = below(3) == 0;
  last_ = free ? "MADV_FREE" : "MADV_DONTNEED";
  if (::madvise(area.at + first * kPage, count * kPage, free ? MADV_FREE : MADV_DONTNEED) != 0) return;
  for (size_t i = first; i < first + count; ++i) {
    if (free) {
      area.pages[i].freed = true;
    } else {
      area.pages[i] = {};
    }
  }
}

/// A new mapping in the place of a part: it is nobody's but the program's.
inline void Walk::map_over(Area& area, size_t first, size_t count) {
  last_ = "mmap over a part";
  char* at = area.at + first * kPage;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (::mmap(at, count * kPage, PROT_READ | PROT_WRITE, kFlags, -1, 0) == MAP_FAILED)
    return trouble("no mmap", first, count);
  std::fill_n(area.pages.begin() + static_cast<ptrdiff_t>(first), count, Page{});
  if (below(2) == 0) write_page(at, area.pages[first]);
}

inline void Walk::protect(Area& area, size_t first, size_t count) {
  last_ = "mprotect";
  char* at = area.at + first * kPage;
  if (below(3) == 0) ::mprotect(at, count * kPage, PROT_NONE);
  ::mprotect(at, count * kPage, PROT_READ);
  check_page(at, area.pages[first]);
  ::mprotect(at, count * kPage, PROT_READ | PROT_WRITE);
}

/// The kernel reads the page, or writes to it, for us.
inline void Walk::through_kernel(Area& area, size_t page) {
  last_ = "write(2) and read(2)";
  int ends[2];
  if (::pipe(ends) != 0) return trouble("no pipe", 0, 0);
  alignas(8) char copy[kPage];
  char* at = area.at + page * kPage;
  if (::write(ends[1], at, kPage) != static_cast<ssize_t>(kPage) ||
      ::read(ends[0], copy, kPage) != static_cast<ssize_t>(kPage))
    trouble("a pipe took no page", page, 0);
  check_page(copy, area.pages[page]);
  write_page(copy, area.pages[page]);
  if (::write(ends[1], copy, kPage) != static_cast<ssize_t>(kPage) ||
      ::read(ends[0], at, kPage) != static_cast<ssize_t>(kPage))
    trouble("a pipe gave no page", page, 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

inline void Walk::have(size_t pages) {
  size_t now = 0;
  for (const Area& area : areas_) now += area.pages.size();
  while (now > 2 * pages || areas_.size() > 100) {
    const size_t which = below(areas_.size()), count = areas_[which].pages.size();
    now -= count;
    drop(which, 0, count);
    std::erase_if(areas_, [](const Area& a) { return a.pages.empty(); });
  }
  if (now >= pages / 2) return;
  last_ = "mmap";
  Area more{fresh(pages - now), std::vector<Page>(pages - now)};
  ::mprotect(more.at, more.pages.size() * kPage, PROT_READ | PROT_WRITE);
  for (size_t i = 0; i < more.pages.size(); ++i)
    if (below(5) != 0) write_page(more.at + i * kPage, more.pages[i]);
  areas_.push_back(std::move(more));
}

inline void Walk::reap(int options) {
  if (children_.empty()) return;
  int status = 0;
  const pid_t pid = ::waitpid(children_.front(), &status, options);
  if (pid == 0) return;
  if (pid < 0) trouble("a child is lost", static_cast<uint64_t>(children_.front()), 0);
  if (status != 0)
    trouble("a child ended with", static_cast<uint64_t>(status), static_cast<uint64_t>(children_.front()));
  children_.erase(children_.begin());
}

inline void Walk::have_child() {
  if (depth_ >= 2 || children_.size() >= around_.most_children) return;
  last_ = "fork";
  const uint64_t seed = random_();
  std::vector<char*> arguments;
  for (std::string& word : around_.executed) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  if (below(8) == 0) {  // as vfork(2)
    pid_t other = 0;
    if (::posix_spawn(&other, arguments[0], nullptr, nullptr, arguments.data(), nullptr) == 0)
      children_.push_back(other);
    return;
  }
  const pid_t child = ::fork();
  if (child < 0) return trouble("no child", 0, 0);
  if (child > 0) {
    children_.push_back(child);
    return;
  }
  if (seed % 8 == 1) {
    ::execv(arguments[0], arguments.data());
    ::_exit(1);
  }
  be_child(seed);
}

inline void Walk::be_child(uint64_t seed) {
  children_.clear();
  random_.seed(seed);
  ++depth_;
  if (around_.in_child) around_.in_child(around_);
  if (seed % 8 == 0) end_child(0);
  if (seed % 8 == 2) end_child(run(40, depth_));
  only_reads_ = true;
  check_all();
  good_ = around_.check_more() && good_;
  end_child(good_ ? 0 : 1);
}

}  // namespace memory_walk
