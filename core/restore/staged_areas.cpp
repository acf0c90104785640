#include "core/restore/staged_areas.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/memory/page_scan.h"

namespace migrate {
namespace {

constexpr uint64_t kLowest = uint64_t{1} << 30;  // leave the low addresses (mmap_min_addr, 32-bit mappings) to the task
constexpr uint64_t kStep = uint64_t{1} << 30;

bool same_kind(const StagedArea& a, const StagedArea& b) {
  return a.no_reserve == b.no_reserve && a.grows_down == b.grows_down && a.file == b.file && a.base == b.base;
}

StagedArea part(StagedArea a, uint64_t start, uint64_t end) {
  a.start = start;
  a.end = end;
  return a;
}

/// `from` without `what`; both ascending and disjoint.
std::vector<StagedArea> without(const std::vector<StagedArea>& from, const std::vector<StagedArea>& what) {
  std::vector<StagedArea> rest;
  size_t next = 0;
  for (const StagedArea& a : from) {
    uint64_t at = a.start;
    while (next < what.size() && what[next].end <= at) ++next;
    for (size_t i = next; i < what.size() && what[i].start < a.end; ++i) {
      if (what[i].start > at) rest.push_back(part(a, at, what[i].start));
      at = std::max(at, what[i].end);
    }
    if (at < a.end) rest.push_back(part(a, at, a.end));
  }
  return rest;
}

/// Ascending, neighbours of a kind put together.
std::vector<StagedArea> joined(std::vector<StagedArea> a) {
  std::sort(a.begin(), a.end(), [](const StagedArea& x, const StagedArea& y) { return x.start < y.start; });
  std::vector<StagedArea> all;
  for (const StagedArea& area : a) {
    if (!all.empty() && all.back().end == area.start && part(all.back(), 0, 0) == part(area, 0, 0)) {
      all.back().end = area.end;
    } else {
      all.push_back(area);
    }
  }
  return all;
}

bool overlap(std::span<const AddressRange> a, std::span<const AddressRange> b) {
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i].end <= b[j].start) {
      ++i;
    } else if (b[j].end <= a[i].start) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

/// Ascending; empty if one would lie across the end of the address space or in its lowest part.
std::vector<AddressRange> staged_at(uint64_t distance, std::span<const AddressRange> ranges) {
  std::vector<AddressRange> all;
  for (const AddressRange& r : ranges) {
    const uint64_t start = staged_address(r.start, distance);
    if (start < kLowest || r.end - r.start > kUserEnd - start) return {};
    all.push_back({start, start + (r.end - r.start)});
  }
  std::sort(all.begin(), all.end());
  return all;
}

/// Huge pages for whole blocks in which there is nothing yet. MADV_COLLAPSE (6.1) leaves no mark on the mapping, as
/// MADV_HUGEPAGE would, and wants a page table to begin with. Where it fails there will be small pages.
void collapse_empty(uint64_t address, uint64_t bytes) {
  constexpr uint64_t kHuge = 2 << 20;
  constexpr int kCollapse = 25;
  ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  for (uint64_t at = address; at < address + bytes; at += kHuge) ::madvise(local(at), kPageSize, MADV_POPULATE_WRITE);
  ::madvise(local(address), bytes, kCollapse);
  check(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "turn off", "huge pages");
}

/// Makes a page of its own of each that is not there; what is there stays. MADV_POPULATE_WRITE would mark the pages as
/// accessed, so that the next access through get_user_pages (process_vm_writev(2)) moves each to the active list, under
/// the lock of that list (mm/swap.c, folio_mark_accessed): that costs a twentieth of filling while the tree stands.
void touch(AddressRange range) {
  for (uint64_t at = range.start; at < range.end; at += kPageSize)
    std::atomic_ref(*reinterpret_cast<unsigned char*>(local(at))).fetch_or(0, std::memory_order_relaxed);
}

}  // namespace

AreaChange compare_areas(const std::vector<StagedArea>& have, const std::vector<StagedArea>& wanted) {
  AreaChange change;
  for (size_t h = 0, w = 0; h < have.size() && w < wanted.size();) {
    const uint64_t start = std::max(have[h].start, wanted[w].start), end = std::min(have[h].end, wanted[w].end);
    if (start < end && same_kind(have[h], wanted[w])) change.kept.push_back(part(have[h], start, end));
    if (start < end && !same_kind(have[h], wanted[w])) change.replaced = true;
    if (have[h].end < wanted[w].end) {
      ++h;
    } else {
      ++w;
    }
  }
  change.dropped = without(have, change.kept);
  change.added = without(wanted, change.kept);
  return change;
}

bool distance_fits(uint64_t distance, std::span<const AddressRange> staged, std::span<const AddressRange> others) {
  const std::vector<AddressRange> at = staged_at(distance, staged);
  return at.size() == staged.size() && !overlap(at, staged) && !overlap(at, others);
}

uint64_t pick_distance(std::span<const AddressRange> staged, std::span<const AddressRange> others,
                       std::span<const AddressRange> busy) {
  // Half of the address space away first: what programs use is near its ends.
  for (uint64_t part = kUserSpace / 2; part >= kStep; part /= 2) {
    for (uint64_t distance = part; distance < kUserSpace; distance += 2 * part)
      if (distance_fits(distance, staged, others) && !overlap(staged_at(distance, staged), busy)) return distance;
    if (part == kUserSpace / 4096) break;  // thousands of tries mean that it is full
  }
  uint64_t bytes = 0;
  for (const AddressRange& r : staged) bytes += r.end - r.start;
  throw Error("the address space has no room to stage " + std::to_string(bytes) + " bytes in one piece");
}

std::vector<AddressRange> split_by_mappings(AddressRange range, const std::vector<AddressRange>& mappings) {
  std::vector<AddressRange> parts;
  auto m = std::upper_bound(mappings.begin(), mappings.end(), range.start,
                            [](uint64_t at, const AddressRange& r) { return at < r.end; });
  for (uint64_t at = range.start; at < range.end && m != mappings.end(); ++m) {
    if (m->start > at) break;
    parts.push_back({at, std::min(range.end, m->end)});
    at = parts.back().end;
  }
  if (parts.empty() || parts.back().end != range.end) throw Error("find", "staging memory that was made", EFAULT);
  return parts;
}

Fd& StagedAreas::userfaultfd() {
  if (!userfaultfd_) {
    userfaultfd_ = Fd(static_cast<int>(check(::syscall(SYS_userfaultfd, O_CLOEXEC), "make", "a userfaultfd")));
    uffdio_api api{UFFD_API, 0, 0};
    check(::ioctl(userfaultfd_.get(), UFFDIO_API, &api), "set up", "a userfaultfd");
  }
  return userfaultfd_;
}

void StagedAreas::set_registered(const StagedArea& area, bool on) {
  const uint64_t bytes = area.end - area.start;
  uffdio_range range{staging(area.start), bytes};
  uffdio_register reg{range, UFFDIO_REGISTER_MODE_MISSING, 0};
  const int done = on ? ::ioctl(userfaultfd().get(), UFFDIO_REGISTER, &reg)
                      : ::ioctl(userfaultfd().get(), UFFDIO_UNREGISTER, &range);
  check(done, on ? "register staging memory of" : "unregister staging memory of", "task " + std::to_string(task_));
}

/// False if something of ours is in the way.
bool StagedAreas::map(StagedArea& area, const StagedFiles& files, bool last) {
  const uint64_t at = staging(area.start), bytes = area.end - area.start;
  const bool file = area.file.inode != 0;
  const int fd = file ? files.at(area.file) : -1;
  const auto offset = static_cast<off_t>(file ? area.base + area.start : 0);
  const int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (area.no_reserve ? MAP_NORESERVE : 0) |
                    (area.grows_down ? MAP_GROWSDOWN : 0) | (file ? 0 : MAP_ANONYMOUS);
  const void* mapped = ::mmap(local(at), bytes, area.no_access ? PROT_NONE : PROT_READ | PROT_WRITE, flags, fd, offset);
  if (mapped == MAP_FAILED && errno == ENOMEM && !area.no_access) {
    // A reservation that was never meant to be all used: without access it commits nothing, and can be filled still.
    mapped = ::mmap(local(at), bytes, PROT_NONE, flags, fd, offset);
    area.no_access = mapped != MAP_FAILED;
  }
  if (mapped == MAP_FAILED && errno == EEXIST) return false;
  if (mapped == MAP_FAILED) throw Error("make staging memory of", "task " + std::to_string(task_), errno);
  if (!last) ::madvise(local(at), bytes, MADV_DONTFORK);
  if (file) return true;  // missing pages of files cannot be registered
  // Beside memory that is there already it stays as that is, so that both are one mapping and share an anon_vma.
  const bool beside = std::ranges::any_of(areas_, [&](const StagedArea& a) {
    return (a.end == area.start || a.start == area.end) && !a.registered && same_kind(a, area);
  });
  if (beside) return true;
  set_registered(area, true);
  area.registered = true;
  return true;
}

void StagedAreas::move_to(uint64_t distance) {
  const std::vector<AddressRange> own = own_mappings();
  for (StagedArea& area : areas_) {
    // Moving drops a registration (no remap events are asked for).
    if (area.registered) set_registered(area, false);
    const uint64_t from = staging(area.start);
    for (const AddressRange& r : split_by_mappings({from, from + (area.end - area.start)}, own)) {
      const uint64_t to = staged_address(area.start + (r.start - from), distance), bytes = r.end - r.start;
      if (::mremap(local(r.start), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, local(to)) == MAP_FAILED)
        throw Error("move staging memory of", "task " + std::to_string(task_), errno);
    }
  }
  distance_ = distance;
  for (const StagedArea& area : areas_)
    if (area.registered) set_registered(area, true);
}

bool StagedAreas::follow(const std::vector<StagedArea>& wanted, const StagedFiles& files,
                         std::span<const AddressRange> others, bool last) {
  AreaChange change = compare_areas(areas_, wanted);
  for (const StagedArea& a : change.dropped)
    check(::munmap(local(staging(a.start)), a.end - a.start), "give back staging memory of",
          "task " + std::to_string(task_));
  for (StagedArea& a : change.kept) {
    if (a.registered) set_registered(a, false);
    a.registered = false;
    if (last) ::madvise(local(staging(a.start)), a.end - a.start, MADV_DOFORK);
  }
  areas_ = std::move(change.kept);

  std::vector<AddressRange> staged;
  for (const StagedArea& a : wanted) staged.push_back({a.start, a.end});
  if (!distance_ || !distance_fits(*distance_, staged, others)) {
    const uint64_t fresh = pick_distance(staged, others, own_mappings());
    if (!distance_) distance_ = fresh;
    if (*distance_ != fresh) move_to(fresh);
  }
  for (size_t i = 0, moves = 0; i < change.added.size();) {
    StagedArea area = change.added[i];
    if (map(area, files, last)) {
      areas_.push_back(area);
      ++i;
    } else {
      if (++moves > 3) throw Error("find room to stage the memory of", "task " + std::to_string(task_), EEXIST);
      move_to(pick_distance(staged, others, own_mappings()));
    }
  }
  areas_ = joined(std::move(areas_));
  // What is told lost is sent again without the zeros: nothing old may be left under them.
  if (change.replaced) empty();
  return change.replaced;
}

void StagedAreas::discard(AddressRange range) {
  for (const StagedArea& a : areas_) {
    const uint64_t start = std::max(a.start, range.start), end = std::min(a.end, range.end);
    if (start >= end) continue;
    check(::madvise(local(staging(start)), end - start, MADV_DONTNEED), "give back pages of",
          "task " + std::to_string(task_));
  }
}

void StagedAreas::empty() {
  for (const StagedArea& a : areas_) discard({a.start, a.end});
}

void StagedAreas::populate(AddressRange range, bool huge_pages) {
  for (StagedArea& a : areas_) {
    const uint64_t start = std::max(a.start, range.start), end = std::min(a.end, range.end);
    if (start >= end || a.no_access || a.file.inode != 0) continue;
    // A fault in a registered area would wait for ever.
    if (a.registered) set_registered(a, false);
    a.registered = false;
    if (huge_pages) collapse_empty(staging(start), end - start);
    touch({staging(start), staging(end)});
  }
}

bool StagedAreas::weld(AddressRange range, const std::vector<AddressRange>& own) {
  const uint64_t at = staging(range.start), bytes = range.end - range.start;
  const std::vector<AddressRange> parts = split_by_mappings({at, at + bytes}, own);
  const auto area =
      std::ranges::find_if(areas_, [&](const StagedArea& a) { return a.start <= range.start && range.end <= a.end; });
  if (parts.size() < 2 || area == areas_.end() || area->no_access || area->file.inode != 0) return false;
  const int flags =
      MAP_PRIVATE | MAP_ANONYMOUS | (area->no_reserve ? MAP_NORESERVE : 0) | (area->grows_down ? MAP_GROWSDOWN : 0);
  auto* const fresh = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
  if (fresh == MAP_FAILED) throw Error("put together memory of", "task " + std::to_string(task_), errno);
  const RemoteRange old{RemoteAddr(at), RemoteAddr(at + bytes)};
  const Fd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
  for (const PageRun& run : scan_private_pages(pagemap.get(), {&old, 1}, true)) {
    constexpr uint64_t kPiece = 512;  // given back as it goes: memory must not double
    for (uint64_t i = 0; i < run.pages; i += kPiece) {
      const uint64_t from = run.address + i * kPageSize, n = std::min(kPiece, run.pages - i) * kPageSize;
      std::memcpy(fresh + (from - at), local(from), n);
      ::madvise(local(from), n, MADV_DONTNEED);
    }
  }
  if (::mremap(fresh, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, local(at)) == MAP_FAILED)
    throw Error("put together memory of", "task " + std::to_string(task_), errno);
  return true;
}

bool StagedAreas::contains(AddressRange range) const {
  const auto a = std::upper_bound(areas_.begin(), areas_.end(), range.start,
                                  [](uint64_t at, const StagedArea& s) { return at < s.end; });
  return a != areas_.end() && a->start < range.end;
}

bool StagedAreas::no_access(uint64_t address) const {
  const auto a = std::upper_bound(areas_.begin(), areas_.end(), address,
                                  [](uint64_t at, const StagedArea& s) { return at < s.end; });
  return a != areas_.end() && a->start <= address && a->no_access;
}

void StagedAreas::unregister() {
  for (StagedArea& a : areas_) {
    if (a.registered) set_registered(a, false);
    a.registered = false;
  }
  areas_ = joined(std::move(areas_));
  userfaultfd_.reset();
}

}  // namespace migrate
