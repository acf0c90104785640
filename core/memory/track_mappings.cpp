#include "core/memory/track_mappings.h"

#include <unistd.h>

#include <algorithm>

namespace migrate {
namespace {

/// Whether a path leads to the file, here and elsewhere.
bool has_path(const Vma& vma) {
  for (const char* prefix : {"/dev/", "/proc/", "/sys/"})
    if (vma.name.starts_with(prefix)) return false;
  return vma.name.starts_with('/') && !vma.name.ends_with(" (deleted)") && vma.name.find("\\012") == std::string::npos;
}

}  // namespace

bool is_private_anonymous(const Vma& vma) {
  if (vma.shared || vma.has_file()) return false;
  if (vma.name == "[vvar]" || vma.name == "[vvar_vclock]" || vma.name == "[vdso]" || vma.name == "[vsyscall]" ||
      vma.name == "[uprobes]")
    return false;
  return !vma.has(VmFlag::pfn_map) && !vma.has(VmFlag::io) && !vma.has(VmFlag::hugetlb) &&
         !vma.has(VmFlag::droppable) && !vma.has(VmFlag::shadow_stack);
}

PageSet::Range range_of(const Vma& vma) { return {vma.range.start.get(), vma.range.end.get()}; }

void append_area(std::vector<TreeLayout::Area>& areas, const Vma& vma) {
  TreeLayout::Area area{.start = vma.range.start.get(),
                        .end = vma.range.end.get(),
                        .huge_pages = vma.has(VmFlag::huge_page),
                        .no_huge_pages = vma.has(VmFlag::no_huge_page),
                        .grows_down = vma.has(VmFlag::grows_down),
                        .no_reserve = vma.has(VmFlag::no_reserve)};
  if (!areas.empty() && areas.back().end == area.start) {
    TreeLayout::Area joined = area;
    joined.start = areas.back().start;
    TreeLayout::Area before = areas.back();
    before.end = area.end;
    if (before == joined) {
      areas.back() = joined;
      return;
    }
  }
  areas.push_back(area);
}

void add_private_files(const std::vector<Vma>& files, bool own_root,
                       const std::function<PageSet(const Vma&)>& copies_in, TaskTracker::Scan& out) {
  for (const Vma& vma : files) {
    const PageSet copies = copies_in(vma);
    if (copies.empty()) continue;
    if (own_root || !has_path(vma)) {
      out.left_pages += copies.pages();
      continue;
    }
    for (const PageSet::Range& r : copies.ranges()) out.copies.append(r.start, r.end);
    out.areas.push_back({.start = vma.range.start.get(),
                         .end = vma.range.end.get(),
                         .no_reserve = vma.has(VmFlag::no_reserve),
                         .file = vma.name,
                         .offset = vma.offset});
  }
  std::sort(out.areas.begin(), out.areas.end(),
            [](const TreeLayout::Area& a, const TreeLayout::Area& b) { return a.start < b.start; });
}

MemoryIdentity MemoryIdentity::of(const ProcStat& stat) {
  return {stat.start_code, stat.start_data, stat.start_stack, stat.arg_start, stat.env_start};
}

bool memory_in_use(int mem) {
  // /proc/PID/mem of a memory that nobody uses any more reads as empty; of one in use this page is never mapped (EIO).
  char byte;
  return ::pread(mem, &byte, 1, static_cast<off_t>(kUserEnd)) != 0;
}

}  // namespace migrate
