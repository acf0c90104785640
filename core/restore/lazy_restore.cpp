#include "core/restore/lazy_restore.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/memory/lazy_pages.h"
#include "core/memory/page_files.h"
#include "core/memory/page_scan.h"

namespace migrate {
namespace {

/// Of all lazy memory.
constexpr uint64_t kEvents = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP;

bool can_be_registered(const ImageVma& v) { return may_be_lazy(v.status, v.flags, v.madvise); }

std::string name_of(const TaskImage& task) { return "the memory of task " + std::to_string(task.pid); }

/// UFFDIO_API with `features` besides kEvents, and UFFDIO_REGISTER.
void register_all(int userfaultfd, const TaskImage& task, uint64_t features, const std::vector<RemoteRange>& ranges,
                  uint64_t mode) {
  uffdio_api api{.api = UFFD_API, .features = kEvents | features};
  check(::ioctl(userfaultfd, UFFDIO_API, &api), "set up the userfaultfd of", name_of(task));
  for (const RemoteRange& r : ranges) {
    uffdio_register order{.range = {r.start.get(), r.bytes()}, .mode = mode};
    check(::ioctl(userfaultfd, UFFDIO_REGISTER, &order), "register", name_of(task));
  }
}

/// Of the mappings that can be registered.
PageSet registrable(const TaskImage& task) {
  PageSet all;
  for (const ImageVma& v : task.vmas)
    if (can_be_registered(v)) all.append(v.start, v.end);
  return all;
}

void check_absent(const TaskImage& task, const std::vector<RemoteRange>& ranges, const PageSet& missing, int pagemap) {
  const PageSet wrong = pages_of(scan_private_pages(pagemap, ranges, true)) & missing;
  if (wrong.empty()) return;
  std::array<char, 32> where;
  std::snprintf(where.data(), where.size(), "%lx", wrong.ranges().front().start);
  throw Error("a page of task " + std::to_string(task.pid) + " that is to come later was written before, at " +
              where.data());
}

}  // namespace

PageSet lazy_in_images(const TaskImage& task, PageImages& pages) {
  PageSet lazy;
  const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(task.pid)};
  for (const StoredPages& s : pages.locate(pagemap_name(memory)))
    if (s.lazy) lazy.append(s.address, s.address + s.bytes);
  return (lazy & registrable(task)) - eager_pages(task.mm, task.cores, -1);
}

PagesByMemory lazy_in_images(const ImageSet& images, PageImages& pages) {
  PagesByMemory all;
  for (const TaskImage& task : read_tasks(images, read_tree(images))) {
    PageSet lazy = lazy_in_images(task, pages);
    if (!lazy.empty()) all.emplace(MemoryId{MemoryId::Kind::task, static_cast<uint64_t>(task.pid)}, std::move(lazy));
  }
  return all;
}

void refuse_named(const ImageSet& images, PageImages& pages, bool lazy, const std::string& folder) {
  for (const TaskNode& node : read_tree(images)) {
    if (node.zombie) continue;
    const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(node.pid)};
    PageSet named = only_named(pages.locate(pagemap_name(memory)));
    if (named.empty()) continue;
    const std::string object = folder + " only names " + std::to_string(named.pages()) + " pages of task " +
                               std::to_string(node.pid) + ", and does not have them";
    if (!lazy)
      throw Refusal(object,
                    "they are where `migrate dump --lazy-pages` waits: start `migrate lazy-pages "
                    "--page-server`, and give --lazy-pages");
    named = named - lazy_in_images(read_task(images, node), pages);
    if (!named.empty())
      throw Refusal(folder + " only names " + std::to_string(named.pages()) + " pages of task " +
                        std::to_string(node.pid) + " that must be there before it runs",
                    "dump the tree with this program, or without --lazy-pages");
  }
}

Fd make_lazy_userfaultfd() {
  // Not UFFD_USER_MODE_ONLY: the kernel, too, must be able to wait for a page in the middle of a call.
  return Fd(static_cast<int>(
      check(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), "make", "a userfaultfd for pages that come later")));
}

std::vector<RemoteRange> lazy_ranges(const TaskImage& task, const PageSet& missing) {
  std::vector<RemoteRange> ranges;
  auto next = missing.ranges().begin();
  for (const ImageVma& v : task.vmas) {
    while (next != missing.ranges().end() && next->end <= v.start) ++next;
    if (next == missing.ranges().end()) break;
    if (can_be_registered(v) && next->start < v.end) ranges.push_back({RemoteAddr(v.start), RemoteAddr(v.end)});
  }
  if (!(missing - registrable(task)).empty())
    throw Corrupt("pages", "that are to come later lie outside of memory that can wait");
  return ranges;
}

std::vector<RemoteRange> register_lazy(int userfaultfd, const TaskImage& task, const PageSet& missing, int pagemap) {
  std::vector<RemoteRange> ranges = lazy_ranges(task, missing);
  register_all(userfaultfd, task, UFFD_FEATURE_EVENT_REMOVE, ranges, UFFDIO_REGISTER_MODE_MISSING);
  check_absent(task, ranges, missing, pagemap);
  return ranges;
}

bool may_have_lazy_shared(const TaskImage& task) {
  return std::ranges::any_of(task.vmas, [](const ImageVma& v) { return v.has(kVmaAnonShared); });
}

LazySharedRanges register_lazy_shared(int userfaultfd, const TaskImage& task, int mem,
                                      const std::map<uint64_t, uint64_t>& bases) {
  LazySharedRanges all;
  PageSet here, seen;
  for (const ImageVma& v : task.vmas) {
    const auto base = v.has(kVmaAnonShared) ? bases.find(v.object) : bases.end();
    if (base == bases.end()) continue;
    const uint64_t at = base->second + v.pgoff;
    const PageSet there(at, at + v.bytes());
    if (!(seen & there).empty())
      throw Corrupt("pages", "that are to come later are of memory that a task has in two places");
    seen = seen | there;
    here.append(v.start, v.end);
    all.ranges.push_back({RemoteAddr(v.start), RemoteAddr(v.end)});
    all.places.push_back({RemoteAddr(at), RemoteAddr(at + v.bytes())});
  }
  if (all.ranges.empty()) return all;
  all.eager = eager_pages(task.mm, task.cores, mem) & here;  // it reads lists, which nobody can afterwards
  // Not EVENT_REMOVE: MADV_DONTNEED and MADV_REMOVE look alike in it.
  register_all(userfaultfd, task, UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, all.ranges,
               UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
  return all;
}

void show_pages(int userfaultfd, const PageSet& pages) {
  for (const PageSet::Range& r : pages.ranges()) {
    for (uint64_t at = r.start; at < r.end; at += kPageSize) {
      uffdio_continue page{.range = {at, kPageSize}};
      // EFAULT: none is there. EEXIST: it is shown.
      if (::ioctl(userfaultfd, UFFDIO_CONTINUE, &page) != 0 && errno != EFAULT && errno != EEXIST)
        throw Error("show pages of", "shared memory", errno);
    }
  }
}

}  // namespace migrate
