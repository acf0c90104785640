#include "core/memory/page_scan.h"

#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <optional>

#include "core/base/kernel_abi.h"
#include "core/memory/pagemap_word.h"

namespace migrate {
namespace {

void append(std::vector<PageRun>& runs, uint64_t start, uint64_t end) {
  if (!runs.empty() && runs.back().address + runs.back().pages * kPageSize == start) {
    runs.back().pages += (end - start) / kPageSize;
  } else {
    runs.push_back({start, (end - start) / kPageSize});
  }
}

/// Adds [start, end) cut to `wanted`; `at` remembers how far `wanted` was used, since both ascend.
void append_clipped(std::vector<PageRun>& runs, uint64_t start, uint64_t end, std::span<const RemoteRange> wanted,
                    size_t& at) {
  while (at < wanted.size() && wanted[at].end.get() <= start) ++at;
  for (size_t i = at; i < wanted.size() && wanted[i].start.get() < end; ++i) {
    const uint64_t from = std::max(start, wanted[i].start.get()), to = std::min(end, wanted[i].end.get());
    if (from < to) append(runs, from, to);
  }
}

struct Categories {
  uint64_t all_of = 0, none_of = 0, any_of = 0;
};

/// One walk over everything between the first and the last wanted address, absent parts cost next to nothing.
/// nullopt: the kernel does not know the call, or one of the categories. Guard pages among those found go to `guards`,
/// if it is given.
std::optional<std::vector<PageRun>> scan(int pagemap, std::span<const RemoteRange> wanted, const Categories& which,
                                         std::vector<PageRun>* guards = nullptr) {
  std::vector<PageRun> runs;
  if (wanted.empty()) return runs;
  std::vector<page_region> regions(4096);
  size_t at = 0, at_of_guards = 0;
  uint64_t from = wanted.front().start.get();
  const uint64_t end = wanted.back().end.get();
  while (from < end) {
    pm_scan_arg arg{};
    arg.size = sizeof arg;
    arg.start = from;
    arg.end = end;
    arg.vec = reinterpret_cast<uint64_t>(regions.data());
    arg.vec_len = regions.size();
    arg.category_inverted = which.none_of;
    arg.category_mask = which.none_of | which.all_of;
    arg.category_anyof_mask = which.any_of;
    arg.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | (guards != nullptr ? PAGE_IS_GUARD : 0);
    const int n = ::ioctl(pagemap, PAGEMAP_SCAN, &arg);
    if (n < 0 && (errno == ENOTTY || errno == EINVAL)) return std::nullopt;
    if (n < 0 && errno == EINTR) continue;
    check(n, "scan pages of", "/proc/PID/pagemap");
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const bool guard = guards != nullptr && (regions[i].categories & PAGE_IS_GUARD) != 0;
      append_clipped(guard ? *guards : runs, regions[i].start, regions[i].end, wanted, guard ? at_of_guards : at);
    }
    // Not full: all was walked, wherever walk_end stands (see core/memory/track_scan.cpp).
    if (static_cast<size_t>(n) < regions.size() || arg.walk_end <= from) break;
    from = arg.walk_end;
  }
  return runs;
}

}  // namespace

std::vector<PageRun> scan_private_pages(int pagemap, std::span<const RemoteRange> wanted, bool anonymous,
                                        std::vector<PageRun>* guards) {
  const Categories which{.none_of = uint64_t{PAGE_IS_PFNZERO} | (anonymous ? 0 : PAGE_IS_FILE),
                         .any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED};
  // A guard page (6.13) reads as one in swap; only from 6.16 on it can be told apart.
  std::vector<PageRun> ignored;
  if (auto runs = scan(pagemap, wanted, which, guards != nullptr ? guards : &ignored)) return std::move(*runs);
  if (auto runs = scan(pagemap, wanted, which)) return std::move(*runs);
  return scan_private_pages_by_words(pagemap, wanted);
}

/// The zero page looks like any other here; it is carried as zeros.
std::vector<PageRun> scan_private_pages_by_words(int pagemap, std::span<const RemoteRange> wanted) {
  using namespace pagemap_word;
  std::vector<PageRun> runs;
  std::vector<uint64_t> words(64 << 10);
  for (const RemoteRange& range : wanted) {
    for (uint64_t page = 0; page < range.pages();) {
      const size_t count = std::min<uint64_t>(words.size(), range.pages() - page);
      const uint64_t address = range.start.get() + page * kPageSize;
      const size_t got = pread_full(pagemap, std::as_writable_bytes(std::span(words.data(), count)),
                                    address / kPageSize * sizeof(uint64_t), "pagemap");
      if (got == 0) break;
      for (size_t i = 0; i < got / sizeof(uint64_t); ++i) {
        const uint64_t word = words[i];
        if ((word & (kPresent | kSwapped)) != 0 && (word & (kFile | kGuard)) == 0)
          append(runs, address + i * kPageSize, address + (i + 1) * kPageSize);
      }
      page += got / sizeof(uint64_t);
    }
  }
  return runs;
}

std::vector<PageRun> scan_guard_pages(int pagemap, std::span<const RemoteRange> wanted) {
  auto runs = scan(pagemap, wanted, {.all_of = PAGE_IS_GUARD});
  return runs ? std::move(*runs) : std::vector<PageRun>{};
}

uint64_t object_size(int fd) {
  struct stat st {};
  check(::fstat(fd, &st), "stat", "a memory file");
  return static_cast<uint64_t>(st.st_size);
}

std::vector<PageRun> scan_object_pages(int fd) {
  const auto end = static_cast<off_t>(page_ceil(object_size(fd)));
  std::vector<PageRun> runs;
  for (off_t at = 0; at < end;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    check(data, "find data in", "a shared memory object");
    const off_t hole = check(::lseek(fd, data, SEEK_HOLE), "find a hole in", "a shared memory object");
    append(runs, page_floor(static_cast<uint64_t>(data)), page_ceil(static_cast<uint64_t>(hole)));
    at = hole;
  }
  return runs;
}

}  // namespace migrate
