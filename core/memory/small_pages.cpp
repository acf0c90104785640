#include "core/memory/small_pages.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <thread>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {
namespace {

/// Of "always within_size [never]"; "": the kernel has no such setting.
std::string chosen(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 256> text{};
  const std::string_view all(text.data(),
                             file ? read_full(file.get(), std::as_writable_bytes(std::span(text)), path) : 0);
  const size_t begin = all.find('['), end = all.find(']');
  return begin == std::string::npos || end == std::string::npos ? ""
                                                                : std::string(all.substr(begin + 1, end - begin - 1));
}

uint64_t blocks_of(int file) {
  struct stat status {};
  check(::fstat(file, &status), "look at", "shared memory");
  return static_cast<uint64_t>(status.st_blocks);
}

}  // namespace

bool makes_huge_pages(const std::string& settings) {
  // With advise a mapping must ask for it, and there is none where a file is allocated.
  static const std::set<std::string> kSmall{"", "never", "deny", "advise", "inherit"};
  if (!kSmall.contains(chosen(settings + "/shmem_enabled"))) return true;
  std::error_code none;
  for (const auto& size : std::filesystem::directory_iterator(settings, none))
    if (size.path().filename().string().starts_with("hugepages-") &&
        !kSmall.contains(chosen(size.path().string() + "/shmem_enabled")))
      return true;
  return false;
}

std::optional<uint64_t> allocated_pages(int file, uint64_t offset, uint64_t bytes) {
  constexpr long kCacheStat = 451;
  struct {
    uint64_t offset, bytes;
  } range{offset, bytes};
  struct {
    uint64_t cached, others[4];
  } found{};
  if (::syscall(kCacheStat, file, &range, &found, 0) != 0) return std::nullopt;
  return found.cached;
}

bool makes_huge_page_at(int file, uint64_t offset) {
  constexpr uint64_t kBlock = 512;
  // Blocks are a poor measure: while khugepaged tries a huge page, and after it failed, holes are counted, too.
  const auto count = [&] {
    return allocated_pages(file, offset & ~(kHugePageSize - 1), kHugePageSize)
        .value_or(blocks_of(file) * kBlock / kPageSize);
  };
  const uint64_t before = count();
  allocate_pages(file, offset, kPageSize);
  return count() > before + 1;
}

void make_hole(int file, uint64_t offset, uint64_t bytes) {
  constexpr int kTries = 200;
  for (int tries = 0;; ++tries) {
    check(::fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                      static_cast<off_t>(bytes)),
          "empty", "shared memory");
    if (allocated_pages(file, offset, bytes).value_or(0) == 0) return;
    if (tries == kTries) throw Error("empty", "a huge page of shared memory", EBUSY);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void allocate_pages(int file, uint64_t offset, uint64_t bytes) {
  check(::fallocate(file, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(bytes)), "allocate",
        "shared memory");
}

BlockPages split_by_blocks(const PageSet& pages) {
  BlockPages all;
  for (const PageSet::Range& r : pages.ranges()) {
    for (uint64_t at = r.start; at < r.end;) {
      const uint64_t block = at / kHugePageSize, end = std::min(r.end, (block + 1) * kHugePageSize);
      if (all.first.empty() || all.first.back() / kHugePageSize != block) {
        all.first.push_back(at);
        at += kPageSize;
      }
      all.rest.append(at, end);
      at = end;
    }
  }
  return all;
}

void allocate_all_but_first(int file, const PageSet& pages) {
  if (pages.empty()) return;
  const auto empty = [&] {
    for (const PageSet::Range& r : pages.ranges()) make_hole(file, r.start, r.end - r.start);
  };
  empty();
  if (makes_huge_pages()) return;
  const bool huge = makes_huge_page_at(file, pages.ranges().front().start);
  empty();
  if (huge) return;
  const PageSet rest = split_by_blocks(pages).rest;
  for (const PageSet::Range& r : rest.ranges()) allocate_pages(file, r.start, r.end - r.start);
}

bool are_allocated(int file, uint64_t offset, uint64_t bytes) {
  return allocated_pages(file, offset, bytes) == bytes / kPageSize;
}

}  // namespace migrate
