#include "core/memory/track_scan.h"

#include <sys/ioctl.h>

#include <vector>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/kernel_abi.h"

namespace migrate {
namespace {

struct Query {
  uint64_t flags = 0, all_of = 0, none_of = 0, any_of = 0, told = 0;
};

/// Guard regions (6.13) read as pages in swap; from 6.16 on they can be told apart.
uint64_t guard_category() {
  static const uint64_t kGuard = [] {
    const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
    pm_scan_arg arg{};
    arg.size = sizeof arg;
    arg.category_mask = PAGE_IS_GUARD;
    return ::ioctl(pagemap.get(), PAGEMAP_SCAN, &arg) == 0 ? uint64_t{PAGE_IS_GUARD} : 0;
  }();
  return kGuard;
}

/// Calls `found` with each region, ascending. False: EPERM.
template <class Found>
bool scan(int pagemap, PageSet::Range range, const Query& query, Found found) {
  std::vector<page_region> regions(range.end - range.start > kHugePageSize ? 4096 : 512);
  const uint64_t none_of = query.none_of | (query.any_of == 0 ? 0 : guard_category());
  uint64_t from = range.start;
  while (from < range.end) {
    pm_scan_arg arg{};
    arg.size = sizeof arg;
    arg.flags = query.flags;
    arg.start = from;
    arg.end = range.end;
    arg.vec = reinterpret_cast<uint64_t>(regions.data());
    arg.vec_len = regions.size();
    arg.category_inverted = none_of;
    arg.category_mask = none_of | query.all_of;
    arg.category_anyof_mask = query.any_of;
    arg.return_mask = query.told;
    const int n = ::ioctl(pagemap, PAGEMAP_SCAN, &arg);
    if (n < 0 && errno == EPERM) return false;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ESRCH) break;  // nobody uses this memory any more
    check(n, "scan pages of", "/proc/PID/pagemap");
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) found(regions[i]);
    // Not full: all was walked. walk_end is then, once the kernel's own buffer of 512 regions has been full (6.18),
    // where that happened last, and walking from there again would tell pages written meanwhile out of order.
    if (static_cast<size_t>(n) < regions.size() || arg.walk_end <= from) break;
    from = arg.walk_end;
  }
  return true;
}

// PAGE_IS_FILE is never asked for: private anonymous memory has no such pages, and it costs a look at each page's
// descriptor, most of the time of a scan.
constexpr uint64_t kExists = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;

auto collect(PageSet& pages, PageSet& huge) {
  return [&](const page_region& r) {
    pages.append(r.start, r.end);
    if ((r.categories & PAGE_IS_HUGE) != 0) huge.append(r.start, r.end);
  };
}

}  // namespace

std::optional<PageSet> scan_and_protect(int pagemap, PageSet::Range range, PageSet& huge) {
  PageSet pages;
  // Only WRITTEN tells a page in swap from a marker, which reads SWAPPED too.
  const Query query{.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                    .all_of = PAGE_IS_WRITTEN,
                    .none_of = PAGE_IS_PFNZERO,
                    .any_of = kExists,
                    .told = PAGE_IS_HUGE};
  if (!scan(pagemap, range, query, collect(pages, huge))) return std::nullopt;
  return pages;
}

PageSet scan_existing(int pagemap, PageSet::Range range, PageSet* huge) {
  PageSet pages, ignored;
  scan(pagemap, range, {.none_of = PAGE_IS_PFNZERO, .any_of = kExists, .told = PAGE_IS_HUGE},
       collect(pages, huge != nullptr ? *huge : ignored));
  return pages;
}

PageSet scan_private_copies(int pagemap, PageSet::Range range) {
  PageSet pages, huge;
  scan(pagemap, range, {.none_of = PAGE_IS_PFNZERO | PAGE_IS_FILE, .any_of = kExists}, collect(pages, huge));
  return pages;
}

PageSet scan_tracked(int pagemap, PageSet::Range range) {
  PageSet pages, huge;
  scan(pagemap, range, {.all_of = PAGE_IS_WPALLOWED, .none_of = PAGE_IS_PFNZERO, .any_of = kExists},
       collect(pages, huge));
  return pages;
}

PageSet scan_not_clean(int pagemap, PageSet::Range range) {
  // Asking for WRITTEN and nothing else takes a way of its own in the kernel, several times as fast (holes count as
  // written there).
  PageSet written, foreign, huge;
  scan(pagemap, range, {.all_of = PAGE_IS_WRITTEN, .told = PAGE_IS_WRITTEN}, collect(written, huge));
  scan(pagemap, range, {.none_of = PAGE_IS_WPALLOWED, .any_of = kExists}, collect(foreign, huge));
  return written | foreign;
}

}  // namespace migrate
