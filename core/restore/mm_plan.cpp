#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"
#include "core/inject/visit_places.h"
#include "core/restore/memory_policies.h"
#include "core/restore/plans.h"
#include "core/restore/restorable.h"

namespace migrate {
namespace {

using restorer::kResultIsArg0;
using restorer::Tag;

#ifndef MADV_GUARD_INSTALL  // 6.13
constexpr int kMadvGuardInstall = 102;
#else
constexpr int kMadvGuardInstall = MADV_GUARD_INSTALL;
#endif

/// Advice that is a property of a mapping; all other advice does something to its pages and has no place here.
constexpr uint64_t kLastingAdvice = 1u << MADV_RANDOM | 1u << MADV_SEQUENTIAL | 1u << MADV_DONTFORK |
                                    1u << MADV_MERGEABLE | 1u << MADV_HUGEPAGE | 1u << MADV_NOHUGEPAGE |
                                    1u << MADV_DONTDUMP | 1u << MADV_WIPEONFORK;

/// The dumped [vvar], [vvar_vclock] and [vdso], ascending.
std::vector<AddressRange> wanted_kernel_mappings(const TaskImage& task) {
  std::vector<AddressRange> wanted;
  for (const ImageVma& v : task.vmas)
    if (v.kernel_made()) wanted.push_back({v.start, v.end});
  return wanted;
}

void move(OpList& list, Tag tag, uint64_t from, uint64_t to, uint64_t bytes) {
  list.call(tag, SYS_mremap, {from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to});
}

/// Moves our kernel mappings out of the way of what comes, keeping their distances: code in [vdso] finds [vvar] by
/// them.
void park_kernel_mappings(const MmPlanInput& in, OpList& list) {
  for (const AddressRange& r : in.kernel)
    move(list, Tag::vdso, r.start, in.parking + (r.start - in.kernel.front().start), r.end - r.start);
}

void place_kernel_mappings(const MmPlanInput& in, OpList& list) {
  const std::vector<AddressRange> wanted = wanted_kernel_mappings(in.task);
  for (size_t i = 0; i < in.kernel.size(); ++i) {
    const AddressRange& own = in.kernel[i];
    const uint64_t parked = in.parking + (own.start - in.kernel.front().start);
    if (wanted.empty()) {
      list.call(Tag::vdso, SYS_munmap, {parked, own.end - own.start});
    } else {
      move(list, Tag::vdso, parked, wanted[i].start, own.end - own.start);
    }
  }
}

void unmap_all_but(std::vector<AddressRange> kept, OpList& list) {
  std::sort(kept.begin(), kept.end());
  uint64_t at = 0;
  for (const AddressRange& r : kept) {
    if (r.start > at) list.call(Tag::unmap, SYS_munmap, {at, r.start - at});
    at = r.end;
  }
  list.call(Tag::unmap, SYS_munmap, {at, kUserEnd - at});
}

void map_fresh(const ImageVma& v, int fd, OpList& list) {
  uint64_t flags = v.flags & (MAP_TYPE | MAP_GROWSDOWN | MAP_NORESERVE);
  flags |= MAP_FIXED_NOREPLACE;
  if (fd < 0) flags |= MAP_ANONYMOUS;
  list.call(Tag::map_memory, SYS_mmap,
            {v.start, v.bytes(), v.prot, flags, static_cast<uint64_t>(static_cast<int64_t>(fd)), fd < 0 ? 0 : v.pgoff},
            kResultIsArg0);
}

/// shmat(2) maps whole segments. Of those that are mapped in part, or were split, each mapping is moved to its place:
/// the kernel counts mappings, so that all of them are attachments again.
void attach_segment(const MmPlanInput& in, const ImageVma& v, OpList& list) {
  const auto segment = in.segments.find(v.object);
  if (segment == in.segments.end() || v.pgoff > segment->second || v.bytes() > segment->second - v.pgoff)
    throw Corrupt("the images", v.describe() + " is of a System V segment that they do not have");
  const uint64_t whole = segment->second;
  const bool is_whole = v.pgoff == 0 && v.bytes() == whole;
  const uint64_t at = is_whole ? v.start : in.attaching;
  const uint32_t access = v.open_flags == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ;
  list.call(Tag::map_memory, SYS_shmat, {v.object, at, v.open_flags == O_RDWR ? uint64_t{0} : uint64_t{SHM_RDONLY}});
  if (!is_whole) {
    move(list, Tag::map_memory, at + v.pgoff, v.start, v.bytes());
    list.call(Tag::map_memory, SYS_munmap, {at, whole});
  }
  if (v.prot != access) list.call(Tag::protect, SYS_mprotect, {v.start, v.bytes(), v.prot});
}

/// What was resident is there already. A sparse area locked on fault must not be filled; another one had every page
/// that it could have, so that locking fills what is all zeros, and fails where it always did.
void plan_lock(const ImageVma& v, bool on_fault, OpList& list) {
  list.call(Tag::lock_memory, SYS_mlock2, {v.start, v.bytes(), MLOCK_ONFAULT});
  if (!on_fault) list.call(Tag::lock_memory, SYS_mlock, {v.start, v.bytes()}, restorer::kMayFail);
}

void plan_attributes(const ImageVma& v, bool on_fault, OpList& list) {
  for (uint64_t advice = 0; advice < 64; ++advice)
    if ((v.madvise & kLastingAdvice) >> advice & 1) list.call(Tag::advise, SYS_madvise, {v.start, v.bytes(), advice});
  if ((v.flags & MAP_LOCKED) != 0) plan_lock(v, on_fault, list);
}

void plan_layout(const MmPlanInput& in, Region& region, OpList& list) {
  const img::mm_entry& mm = in.task.mm;
  const std::vector<uint64_t> auxv(mm.mm_saved_auxv().begin(), mm.mm_saved_auxv().end());
  prctl_mm_map map{};
  map.start_code = mm.mm_start_code();
  map.end_code = mm.mm_end_code();
  map.start_data = mm.mm_start_data();
  map.end_data = mm.mm_end_data();
  map.start_brk = mm.mm_start_brk();
  map.brk = mm.mm_brk();
  map.start_stack = mm.mm_start_stack();
  map.arg_start = mm.mm_arg_start();
  map.arg_end = mm.mm_arg_end();
  map.env_start = mm.mm_env_start();
  map.env_end = mm.mm_env_end();
  map.auxv = reinterpret_cast<__u64*>(region.put(std::as_bytes(std::span(auxv))));
  map.auxv_size = static_cast<__u32>(auxv.size() * sizeof(uint64_t));
  map.exe_fd = static_cast<__u32>(in.exe_fd);
  list.call(Tag::mm_layout, SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, region.put_value(map), sizeof map});
}

/// Some kernels have no names; they are for people to read.
void plan_names(const TaskImage& task, Region& region, OpList& list) {
  std::map<uint64_t, const std::string*> names;
  for (const ext::MappingName& n : task.task_extra().names()) {
    constexpr size_t kLongest = 79;  // ANON_VMA_NAME_MAX_LEN
    if (n.name().size() > kLongest) throw Corrupt("the images", "the name of a mapping is too long");
    names[n.start()] = &n.name();
  }
  for (const ImageVma& v : task.vmas)
    if (const auto named = names.find(v.start); named != names.end() && !v.kernel_made() && !v.has_file())
      list.call(Tag::advise, SYS_prctl,
                {PR_SET_VMA, PR_SET_VMA_ANON_NAME, v.start, v.bytes(),
                 region.put(std::as_bytes(std::span(named->second->c_str(), named->second->size() + 1)))},
                restorer::kMayFail);
}

void plan_seals(const TaskImage& task, OpList& list) {
  const std::set<uint64_t> sealed(task.task_extra().sealed().begin(), task.task_extra().sealed().end());
  for (const ImageVma& v : task.vmas)
    if (!v.kernel_made() && sealed.contains(v.start)) list.call(Tag::seal, SYS_mseal, {v.start, v.bytes(), 0});
}

bool may_seal() { return ::syscall(SYS_mseal, 0, 0, 0) == 0; }  // nothing

bool may_map_droppable() {
  void* const at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return false;
  ::munmap(at, kPageSize);
  return true;
}

}  // namespace

const std::vector<AddressRange>& own_kernel_mappings() {
  static const std::vector<AddressRange> kRanges = [] {
    std::vector<AddressRange> ranges;
    for (const MapsLine& line : parse_maps(read_file_at(AT_FDCWD, "/proc/self/maps")))
      if (line.name == "[vdso]" || line.name == "[vvar]" || line.name == "[vvar_vclock]")
        ranges.push_back({line.range.start.get(), line.range.end.get()});
    return ranges;
  }();
  return kRanges;
}

bool kernel_mappings_fit(std::span<const AddressRange> wanted, std::span<const AddressRange> own) {
  const auto same = [&](const AddressRange& a, const AddressRange& b) {
    return a.end - a.start == b.end - b.start && a.start - wanted[0].start == b.start - own[0].start;
  };
  return wanted.empty() || std::ranges::equal(wanted, own, same);
}

void check_kernel_mappings(const TaskImage& task, const std::vector<AddressRange>& own) {
  if (!kernel_mappings_fit(wanted_kernel_mappings(task), own)) {
    throw Refusal("the vdso of task " + std::to_string(task.pid) + " is laid out differently from this kernel's",
                  "move it to a host with the kernel it was started on");
  }
}

void check_mapping_kinds(const TaskImage& task) {
  const auto refuse = [&](const char* what, const char* since) {
    throw Refusal("task " + std::to_string(task.pid) + " has " + what + ", which this kernel does not know",
                  std::string("move it to a host with Linux ") + since + " or newer");
  };
  if (!task.task_extra().sealed().empty() && !may_seal()) refuse("a sealed mapping (mseal)", "6.10");
  const auto droppable = [](const ImageVma& v) { return (v.flags & MAP_TYPE) == MAP_DROPPABLE; };
  if (std::ranges::any_of(task.vmas, droppable) && !may_map_droppable())
    refuse("droppable memory (MAP_DROPPABLE)", "6.11");
}

void plan_memory(const MmPlanInput& in, Region& region, OpList& list) {
  park_kernel_mappings(in, list);
  std::vector<AddressRange> kept{in.region};
  for (const StagedRange& s : in.staged) kept.push_back({s.staging, s.staging + s.bytes});
  if (!in.kernel.empty()) kept.push_back({in.parking, in.parking + (in.kernel.back().end - in.kernel.front().start)});
  unmap_all_but(std::move(kept), list);

  std::vector<bool> placed(in.task.vmas.size());
  for (const StagedRange& s : in.staged) {
    const ImageVma& v = in.task.vmas[s.vma];
    move(list, Tag::move_memory, s.staging, s.final_start, s.bytes);
    const uint32_t prot = s.no_access ? PROT_NONE : PROT_READ | PROT_WRITE;
    if (v.prot != prot) list.call(Tag::protect, SYS_mprotect, {s.final_start, s.bytes, v.prot});
    placed[s.vma] = true;
  }
  place_kernel_mappings(in, list);
  const auto& locked = in.task.task_extra().lock_on_fault();
  const std::set<uint64_t> on_fault(locked.begin(), locked.end());
  for (size_t i = 0; i < in.task.vmas.size(); ++i) {
    const ImageVma& v = in.task.vmas[i];
    if (v.kernel_made()) continue;
    if (placed[i]) continue;
    if (v.has(kVmaSysvIpc)) {
      attach_segment(in, v, list);
    } else {
      map_fresh(v, in.descriptor_of(v), list);
    }
  }
  plan_policies(in.task, region, list);
  // Before the locks: guards are not installed in locked memory, but stay when it is locked later.
  for (const ImageVma& g : in.task.guards)
    list.call(Tag::advise, SYS_madvise, {g.start, g.bytes(), static_cast<uint64_t>(kMadvGuardInstall)});
  for (const ImageVma& v : in.task.vmas)
    if (!v.kernel_made()) plan_attributes(v, on_fault.contains(v.start), list);
  plan_layout(in, region, list);
  plan_names(in.task, region, list);
  plan_seals(in.task, list);
}

}  // namespace migrate
