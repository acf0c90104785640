// A program whose shared memory is missing, and which does everything to it that memory lets be done: processes and
// threads have pages of their own, and a book says what each must hold.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "tests/lazypages/lazy_program.h"

namespace migrate::lazy_testing {

inline constexpr uint64_t kSharedPages = 1536;  // three huge pages
inline constexpr uint64_t kBesidePages = 64;
inline constexpr int kCollapse = 25;  // MADV_COLLAPSE

/// In memory that all share and that is not lazy.
struct SharedTalk : Talk {
  struct Page {
    enum Kind : uint8_t { source, zeros, written } kind;
    uint64_t value;
  };
  std::atomic<uint64_t> beside{0};  ///< private memory (SharedProgram), or 0
  std::array<Page, kSharedPages> book{};
};

/// One process's view.
class SharedWalk {
 public:
  SharedWalk(char* base, SharedTalk& talk, uint64_t seed) : talk_(talk), seed_(seed), random_(seed) {
    arena_ = static_cast<char*>(::mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (uint64_t i = 0; i < kSharedPages; ++i) places_.push_back(base + i * kPageSize);
    for (uint64_t i = 0; i < kSharedPages; ++i) own_.push_back(i);
  }
  /// Exit code: 0 if every byte was as it should. Until `steps`, and as long as the test wants.
  int run(int steps) {
    // A thread has every eighth page, at the place where it was; the rest is remapped meanwhile.
    std::vector<uint64_t> quiet, rest;
    for (const uint64_t page : own_) (page / 64 % 4 == 3 ? quiet : rest).push_back(page);
    own_ = rest;
    std::atomic<bool> over{false};
    std::thread beside([&, seed = random_()] {
      std::mt19937_64 random(seed);
      while (!over && !quiet.empty() && good_) in_place(quiet[random() % quiet.size()], random);
      for (const uint64_t page : quiet) check(page);
    });
    for (int i = 0; (i < steps || (depth_ == 0 && !talk_.enough)) && good_; ++i) step();
    over = true;
    beside.join();
    for (const uint64_t page : own_) check(page);
    for (uint64_t page = 0; page < kBesidePages; ++page) check_beside(page);
    for (const pid_t child : children_) {
      int status = 0;
      ::waitpid(child, &status, 0);
      if (status != 0) trouble("a child ended with", static_cast<uint64_t>(status));
    }
    return good_ ? 0 : 1;
  }

 private:
  static constexpr uint64_t kArena = 1 << 30;

  void trouble(const char* what, uint64_t a) {
    if (good_.exchange(false) && talk_.trouble[0] == 0)
      std::snprintf(talk_.trouble.data(), talk_.trouble.size(), "seed %lu depth %d: %s %lx (last: %s)", seed_, depth_,
                    what, a, last_);
  }
  void check(uint64_t page) {
    if (places_[page] == nullptr || !good_) return;
    const auto* words = reinterpret_cast<const volatile uint64_t*>(places_[page]);
    const SharedTalk::Page is = talk_.book[page];
    for (uint64_t w = 0; w < 512; ++w) {
      const uint64_t expected = is.kind == SharedTalk::Page::zeros    ? 0
                                : is.kind == SharedTalk::Page::source ? word_of(page, w)
                                                                      : is.value + w;
      if (const uint64_t got = words[w]; got != expected)
        return trouble(got == 0        ? "zeros for page"
                       : expected == 0 ? "something that was taken away, in page"
                                       : "a wrong byte in page",
                       page);
    }
  }
  /// Of the private memory, which nobody changes.
  void check_beside(uint64_t page) {
    const auto* words = reinterpret_cast<const volatile uint64_t*>(talk_.beside + page * kPageSize);
    for (uint64_t w = 0; talk_.beside != 0 && w < 512; ++w)
      if (words[w] != word_of(page, w)) return trouble("a wrong byte in private page", page);
  }
  void write(uint64_t page, std::mt19937_64& random) {
    if (places_[page] == nullptr) return;
    talk_.book[page] = {SharedTalk::Page::written, random() | 1};
    auto* words = reinterpret_cast<volatile uint64_t*>(places_[page]);
    for (uint64_t w = 0; w < 512; ++w) words[w] = talk_.book[page].value + w;
  }
  /// What needs no other mappings.
  void in_place(uint64_t page, std::mt19937_64& random) {
    ++talk_.progress;
    char* at = places_[page];
    if (at == nullptr) return;
    switch (random() % 8) {
      case 0:
        if (::madvise(at, kPageSize, MADV_REMOVE) == 0) talk_.book[page] = {SharedTalk::Page::zeros, 0};
        return;
      case 1:
        ::madvise(at, kPageSize, MADV_DONTNEED);
        return;
      case 2:
        return write(page, random);
      case 3:
        if (random() % 16 == 0)
          ::madvise(reinterpret_cast<void*>(reinterpret_cast<uint64_t>(at) & ~((2UL << 20) - 1)), 2 << 20, kCollapse);
        return;
      default:
        check(page);
    }
  }
  char* fresh(uint64_t pages) {
    if (used_ + (pages + 8) * kPageSize > kArena) used_ = 0;
    char* at = arena_ + used_;
    used_ += (pages + 8) * kPageSize;
    return at;
  }
  /// Pages of ours one after the other, from `first` on.
  uint64_t together(size_t first) const {
    uint64_t n = 1;
    while (n < 24 && first + n < own_.size() && own_[first + n] == own_[first] + n &&
           places_[own_[first + n]] == places_[own_[first]] + n * kPageSize && places_[own_[first]] != nullptr)
      ++n;
    return n;
  }
  void step() {
    const size_t first = random_() % own_.size();
    const uint64_t page = own_[first];
    char* at = places_[page];
    if (at == nullptr) return;
    const uint64_t count = 1 + random_() % together(first);
    switch (random_() % 16) {
      case 0:
        return have_child();
      case 1:
      case 2:
        return move(page, count, false);
      case 3:
        return move(page, count, true);
      case 4: {
        last_ = "mremap of no bytes";
        char* to = fresh(count);
        if (::mremap(at, 0, count * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) return;
        if (random_() % 2 == 0) ::munmap(at, count * kPageSize);
        for (uint64_t i = 0; i < count; ++i) places_[page + i] = to + i * kPageSize;
        return;
      }
      case 5:
        if (random_() % 8 != 0) return;
        last_ = "munmap";
        ::munmap(at, count * kPageSize);
        for (uint64_t i = 0; i < count; ++i) places_[page + i] = nullptr;
        return;
      case 6:
        last_ = "mprotect";
        ::mprotect(at, count * kPageSize, PROT_READ);
        check(page);
        ::mprotect(at, count * kPageSize, PROT_READ | PROT_WRITE);
        return;
      case 7: {
        last_ = "MADV_REMOVE";
        if (::madvise(at, count * kPageSize, MADV_REMOVE) != 0) return;
        for (uint64_t i = 0; i < count; ++i) talk_.book[page + i] = {SharedTalk::Page::zeros, 0};
        return;
      }
      case 8:
        if (random_() % 8 == 0) have_spawned();
        return check_beside(random_() % kBesidePages);
      default:
        last_ = "something in place";
        in_place(page, random_);
    }
  }
  void move(uint64_t page, uint64_t count, bool stays) {
    last_ = stays ? "mremap that leaves the old place" : "mremap";
    char* to = fresh(count);
    const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0);
    if (::mremap(places_[page], count * kPageSize, count * kPageSize, flags, to) == MAP_FAILED) return;
    if (stays && random_() % 2 == 0) return;  // the old place has them, too
    for (uint64_t i = 0; i < count; ++i) places_[page + i] = to + i * kPageSize;
  }
  /// It takes half of our pages, for ever.
  void have_child() {
    if (depth_ >= 2 || children_.size() >= 6 || own_.size() < 16) return;
    last_ = "fork";
    const uint64_t seed = random_();
    std::vector<uint64_t> its(own_.begin() + static_cast<ptrdiff_t>(own_.size() / 2), own_.end());
    own_.resize(own_.size() / 2);
    const pid_t child = ::fork();
    if (child < 0) return trouble("no child", 0);
    if (child > 0) {
      children_.push_back(child);
      return;
    }
    children_.clear();
    own_ = std::move(its);
    random_.seed(seed);
    ++depth_;
    for (const uint64_t page : own_) {
      if (random_() % 4 == 0) check(page);
    }
    if (random_() % 4 == 0) ::execl("/bin/true", "true", nullptr);
    ::_exit(run(200));
  }

  /// In our memory until it executes.
  void have_spawned() {
    last_ = "posix_spawn";
    std::array<char*, 2> arguments{const_cast<char*>("true"), nullptr};  // NOLINT: it does not write there
    pid_t child = 0;
    int status = 0;
    if (::posix_spawn(&child, "/bin/true", nullptr, nullptr, arguments.data(), nullptr) != 0 ||
        ::waitpid(child, &status, 0) != child || status != 0)
      trouble("a program that was executed ended with", static_cast<uint64_t>(status));
  }

  SharedTalk& talk_;
  uint64_t seed_;
  std::mt19937_64 random_;
  int depth_ = 0;
  std::atomic<bool> good_{true};
  const char* last_ = "";
  std::vector<char*> places_;  ///< of each page; nullptr: none of ours
  std::vector<uint64_t> own_;  ///< pages that nobody else touches
  std::vector<pid_t> children_;
  char* arena_;
  uint64_t used_ = 0;
};

}  // namespace migrate::lazy_testing
