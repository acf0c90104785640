// For the tests of warm fill: a program that changes its memory and its tasks on order, and what a tracker would tell
// about it.
#pragma once

#include <gtest/gtest.h>
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/memory/page_scan.h"
#include "core/memory/vma.h"
#include "core/restore/restore.h"
#include "tests/core/places.h"

namespace migrate::warm_test {

inline constexpr uint64_t kAt = 0x10000000000, kBytes = 8 << 20, kSharedAt = 0x10100000000, kShared = 1 << 20;
inline constexpr uint64_t kMemfdAt = 0x10200000000, kMemfd = 2 << 20, kFileAt = 0x10300000000, kFile = 512 << 10;
inline constexpr uint64_t kReservedAt = 0x20000000000, kReserved = uint64_t{1} << 40;

/// The program that moves: obeys bytes appended to one file, answers each by a byte in another.
class Program {
 public:
  Program(const std::string& folder)
      : commands_(::open((folder + "/commands").c_str(), O_RDONLY)),
        answers_(::open((folder + "/answers").c_str(), O_WRONLY | O_APPEND)) {}

  [[noreturn]] void run() {
    ::mmap(at(kAt), kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    ::mmap(at(kReservedAt), kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1,
           0);
    ::mmap(at(kSharedAt), kShared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    memfd_ = ::memfd_create("warm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    static_cast<void>(!::ftruncate(memfd_, kMemfd / 2 + 100));
    ::mmap(at(kMemfdAt), kMemfd, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, memfd_, 0);
    touch(kMemfdAt, kMemfd / 4, 3);
    const int file = ::open("/proc/self/exe", O_RDONLY);
    ::mmap(at(kFileAt), kFile, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, 4 * kPageSize);
    ::close(file);
    touch(kFileAt, kFile / 2, 4);
    end_ = kAt + kBytes;
    touch(kAt, kBytes, 1);
    touch(kSharedAt, kShared, 2);
    answer('!');
    for (;;) {
      char c;
      if (::pread(commands_, &c, 1, done_) != 1) {
        ::usleep(500);
        continue;
      }
      ++done_;
      obey(c);
      answer(c);
    }
  }

 private:
  void answer(char c) {
    if (::write(answers_, &c, 1) != 1) ::_exit(1);
  }

  /// Words all over the range, other ones each time.
  static void touch(uint64_t start, uint64_t bytes, uint64_t seed) {
    for (uint64_t i = 0; i < bytes; i += kPageSize * (1 + (i / kPageSize + seed) % 3)) {
      const uint64_t word = seed * 1000003 + i * 2654435761u;
      std::memcpy(at(start + i + 8 * (i / kPageSize % 500)), &word, sizeof word);
    }
  }

  void obey(char c) {
    ++round_;
    switch (c) {
      case 'g':  // upwards and downwards, a heap, and a part of the reservation
        ::mmap(at(end_), 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        touch(end_, 1 << 20, round_);
        end_ += 1 << 20;
        std::memset(::sbrk(200 << 10), static_cast<int>(round_), 200 << 10);
        ::mprotect(at(kReservedAt + (uint64_t{round_} << 30)), 1 << 20, PROT_READ | PROT_WRITE);
        touch(kReservedAt + (uint64_t{round_} << 30), 1 << 20, round_);
        break;
      case 's':
        if (end_ <= kAt + (4 << 20)) break;
        ::munmap(at(end_ - (1 << 20)), 1 << 20);
        end_ -= 1 << 20;
        ::munmap(at(kAt + (3 << 20)), 64 << 10);  // a hole
        ::mprotect(at(kAt + (1 << 20)), 16 << 10, PROT_READ);
        break;
      case 'w':
        touch(kAt, 1 << 20, round_), touch(kSharedAt, 64 << 10, round_);
        break;
      case 'd':
        ::madvise(at(kAt + (2 << 20)), 256 << 10, MADV_DONTNEED);
        break;
      case 'm':
        change_memfd();
        break;
      case 'p':  // copies of file pages
        touch(kFileAt + (128 << 10), kFile / 2, round_);
        ::madvise(at(kFileAt + round_ % 40 * kPageSize), 10 * kPageSize, MADV_DONTNEED);
        break;
      case 'n':  // another one
        ::close(memfd_);
        memfd_ = ::memfd_create("new", MFD_CLOEXEC);
        static_cast<void>(!::pwrite(memfd_, "new", 3, 5 * kPageSize));
        break;
      case 'f':
        fork_child();
        break;
      default:
        if (child_ > 0) change_child(c);
    }
  }

  /// It grows, shrinks, is written through its descriptor, and loses pages.
  void change_memfd() {
    const auto bytes = static_cast<off_t>(kMemfd / 2 + (uint64_t{round_} * 37777) % (kMemfd / 2));
    static_cast<void>(!::ftruncate(memfd_, round_ % 3 == 0 ? bytes / 3 : bytes));
    const uint64_t word = round_;
    for (off_t i = 0; i < bytes / 2; i += 7 * static_cast<off_t>(kPageSize))
      static_cast<void>(!::pwrite(memfd_, &word, sizeof word, i + static_cast<off_t>(round_) * 8));
    ::fallocate(memfd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(round_ % 20 * kPageSize),
                static_cast<off_t>(9 * kPageSize));
    ::madvise(at(kSharedAt + round_ % 30 * kPageSize), 4 * kPageSize, MADV_REMOVE);
  }

  void change_child(char c) {
    siginfo_t info{};
    switch (c) {
      case 'k':
        ::kill(child_, SIGKILL);
        ::waitpid(child_, nullptr, 0);
        child_ = 0;
        break;
      case 'z':  // and not waited for
        ::kill(child_, SIGKILL);
        ::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOWAIT);
        child_ = 0;
        break;
      case 'S':
        ::kill(child_, SIGUSR1);
        break;
      case 'G':
        ::setpgid(child_, child_);
        break;
      default:
        break;
    }
  }

  void fork_child() {
    ::signal(SIGUSR1, [](int) { ::setsid(); });
    child_ = ::fork();
    if (child_ != 0) return;
    touch(kAt + (5 << 18), 1 << 20, round_ + 77);
    for (;;) ::pause();
  }

  int commands_, answers_, memfd_ = -1;
  off_t done_ = 0;
  uint64_t end_ = 0;
  unsigned round_ = 10;
  pid_t child_ = 0;
};

inline std::string proc(pid_t pid, const std::string& file) { return "/proc/" + std::to_string(pid) + "/" + file; }

struct Page {
  uint64_t address;
  std::vector<std::byte> data;
};

/// Layout and pages of a running tree, as a tracker would give them.
class Tree {
 public:
  explicit Tree(pid_t root) : root_(root) {}

  TreeLayout layout() const {
    TreeLayout all;
    add_task(root_, 0, all);
    for (const auto& [id, fd] : objects()) {
      struct stat st {};
      ::fstat(fd.get(), &st);
      const std::string link = read_link_at(AT_FDCWD, fd_link(fd.get()));
      const bool memfd = link.starts_with("/memfd:");
      all.objects.push_back(
          {id, page_ceil(static_cast<uint64_t>(st.st_size)), memfd, memfd ? link.substr(7, link.find(' ') - 7) : ""});
    }
    return all;
  }

  static std::vector<TreeLayout::Area> areas(pid_t pid) {
    std::vector<TreeLayout::Area> areas;
    for (const Vma& v : parse_smaps(read_file_at(AT_FDCWD, proc(pid, "smaps")))) {
      TreeLayout::Area a{v.range.start.get(), v.range.end.get()};
      if (a.start == kFileAt) {
        a.file = v.name;
        a.offset = v.offset;
        areas.push_back(a);
        continue;
      }
      if (v.shared || v.has_file() || v.name.starts_with("[v")) continue;
      a.no_reserve = v.has(VmFlag::no_reserve);
      a.grows_down = v.has(VmFlag::grows_down);
      if (!areas.empty() && areas.back().end == a.start && areas.back().no_reserve == a.no_reserve &&
          areas.back().grows_down == a.grows_down) {
        areas.back().end = a.end;
      } else {
        areas.push_back(a);
      }
    }
    return areas;
  }

  /// Present pages.
  static std::vector<Page> pages(pid_t pid, const std::vector<TreeLayout::Area>& areas) {
    const Fd mem = open_path(proc(pid, "mem"), O_RDONLY), map = open_path(proc(pid, "pagemap"), O_RDONLY);
    std::vector<Page> pages;
    for (const TreeLayout::Area& a : areas) {
      if (a.end - a.start > uint64_t{1} << 35) {
        for (unsigned i = 10; i < 40; ++i) add_pages(map, mem, kReservedAt + (uint64_t{i} << 30), 1 << 20, pages);
      } else {
        add_pages(map, mem, a.start, a.end - a.start, pages);
      }
    }
    return pages;
  }

  /// Shared memory of the root: at kSharedAt, and every memfd that it has open.
  std::map<uint64_t, Fd> objects() const {
    std::map<uint64_t, Fd> all;
    const auto add = [&](Fd fd) {
      struct stat st {};
      if (::fstat(fd.get(), &st) == 0) all.emplace(st.st_ino, std::move(fd));
    };
    const ProcDir root(root_);
    for (const Vma& v : parse_smaps(root.read("maps")))
      if (v.range.start.get() == kSharedAt || v.range.start.get() == kMemfdAt)
        add(root.open("map_files/" + v.link_name(), O_RDONLY));
    for (const int fd : root.descriptors())
      if (root.link("fd/" + std::to_string(fd)).starts_with("/memfd:"))
        add(root.open("fd/" + std::to_string(fd), O_RDONLY));
    return all;
  }

 private:
  static constexpr uint64_t kIsFile = uint64_t{1} << 61;  // pagemap

  static void add_pages(const Fd& map, const Fd& mem, uint64_t start, uint64_t bytes, std::vector<Page>& pages) {
    std::vector<uint64_t> entries(bytes / kPageSize);
    pread_full(map.get(), std::as_writable_bytes(std::span(entries)), start / kPageSize * 8, "pagemap");
    for (size_t i = 0; i < entries.size(); ++i) {
      if ((entries[i] >> 62) == 0 || (entries[i] & kIsFile) != 0) continue;
      Page page{start + i * kPageSize, std::vector<std::byte>(kPageSize)};
      pread_full(mem.get(), page.data, page.address, "memory");
      pages.push_back(std::move(page));
    }
  }

  static void add_task(pid_t pid, pid_t parent, TreeLayout& all) {
    const std::string stat = read_file_at(AT_FDCWD, proc(pid, "stat"));
    std::istringstream rest(stat.substr(stat.rfind(')') + 1));
    char state;
    TreeLayout::Task t;
    rest >> state >> t.ppid >> t.pgid >> t.sid;
    if (state == 'Z') return;
    t.pid = pid;
    t.ppid = parent;
    t.areas = areas(pid);
    all.tasks.push_back(t);
    std::istringstream children(read_file_at(AT_FDCWD, proc(pid, "task/" + std::to_string(pid) + "/children")));
    for (pid_t child = 0; children >> child;) add_task(child, pid, all);
  }

  pid_t root_;
};

}  // namespace migrate::warm_test
