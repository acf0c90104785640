#include "core/dump/dump_memory.h"

#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/base/kernel_abi.h"
#include "core/base/looked_at.h"
#include "core/base/proc_values.h"
#include "core/image/magic.h"
#include "core/memory/page_scan.h"

namespace migrate {
namespace {

// vma_entry.status
constexpr uint32_t kRegular = 1 << 0, kStack = 1 << 1, kVsyscall = 1 << 2, kVdso = 1 << 3, kHeap = 1 << 5,
                   kFilePrivate = 1 << 6, kFileShared = 1 << 7, kAnonShared = 1 << 8, kAnonPrivate = 1 << 9,
                   kSysvIpc = 1 << 10, kVvar = 1 << 12, kMemfd = 1 << 14, kGuard = 1 << 16;

bool is_memfd(const Vma& vma, dev_t shm_device) { return vma.device == shm_device && vma.name.starts_with("/memfd:"); }

bool is_segment(const Vma& vma, dev_t shm_device) { return vma.device == shm_device && vma.name.starts_with("/SYSV"); }

/// Shared anonymous memory: "/dev/zero (deleted)", or "[anon_shmem:NAME]" if it was named.
bool is_anonymous_shared(const Vma& vma, dev_t shm_device) {
  return vma.shared && vma.device == shm_device &&
         (vma.name.starts_with("/dev/zero") || vma.name.starts_with("[anon_shmem"));
}

uint64_t madvise_bits(const Vma& vma) {
  constexpr std::pair<VmFlag, int> kAdvice[] = {
      {VmFlag::random, MADV_RANDOM},      {VmFlag::sequential, MADV_SEQUENTIAL},
      {VmFlag::dont_fork, MADV_DONTFORK}, {VmFlag::mergeable, MADV_MERGEABLE},
      {VmFlag::huge_page, MADV_HUGEPAGE}, {VmFlag::no_huge_page, MADV_NOHUGEPAGE},
      {VmFlag::dont_dump, MADV_DONTDUMP}, {VmFlag::wipe_on_fork, MADV_WIPEONFORK}};
  uint64_t bits = 0;
  for (const auto& [flag, advice] : kAdvice)
    if (vma.has(flag)) bits |= uint64_t{1} << advice;
  return bits;
}

/// PR_SET_VMA_ANON_NAME; the kernel allows no bracket in it.
std::string_view given_name(const Vma& vma) {
  for (const std::string_view kind : {"[anon:", "[anon_shmem:"})
    if (vma.name.starts_with(kind) && vma.name.ends_with(']'))
      return std::string_view(vma.name).substr(kind.size(), vma.name.size() - kind.size() - 1);
  return {};
}

uint32_t map_flags(const Vma& vma) {
  uint32_t flags = vma.shared ? MAP_SHARED : vma.has(VmFlag::droppable) ? MAP_DROPPABLE : MAP_PRIVATE;
  if (!vma.has_file()) flags |= MAP_ANONYMOUS;
  if (vma.has(VmFlag::grows_down)) flags |= MAP_GROWSDOWN;
  if (vma.has(VmFlag::locked)) flags |= MAP_LOCKED;
  if (vma.has(VmFlag::no_reserve)) flags |= MAP_NORESERVE;
  return flags;
}

uint32_t anonymous_status(const Vma& vma) {
  if (vma.name == "[vsyscall]") return kVsyscall;
  uint32_t status = kRegular | kAnonPrivate;
  if (vma.name == "[heap]") status |= kHeap;
  if (vma.name == "[stack]") status |= kStack;
  if (vma.name == "[vdso]") status |= kVdso;
  if (is_vvar(vma)) status |= kVvar;
  return status;
}

/// Guard regions (MADV_GUARD_INSTALL) are markers in page tables, not mappings: entries of their own tell about them.
void add_guards(const std::vector<PageRun>& guards, img::mm_entry& mm) {
  for (const PageRun& run : guards) {
    img::vma_entry& entry = *mm.add_vmas();
    entry.set_start(run.address);
    entry.set_end(run.address + run.pages * kPageSize);
    entry.set_pgoff(0);
    entry.set_shmid(0);
    entry.set_prot(PROT_NONE);
    entry.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
    entry.set_status(kGuard);
    entry.set_fd(-1);
  }
}

void fill_areas(const StoppedTask& task, const TaskHarvest& harvest, img::mm_entry& mm) {
  const ProcStat stat = task.proc.stat();
  mm.set_mm_start_code(stat.start_code);
  mm.set_mm_end_code(stat.end_code);
  mm.set_mm_start_data(stat.start_data);
  mm.set_mm_end_data(stat.end_data);
  mm.set_mm_start_stack(stat.start_stack);
  mm.set_mm_start_brk(stat.start_brk);
  mm.set_mm_brk(harvest.brk);
  mm.set_mm_arg_start(stat.arg_start);
  mm.set_mm_arg_end(stat.arg_end);
  mm.set_mm_env_start(stat.env_start);
  mm.set_mm_env_end(stat.env_end);
  mm.set_dumpable(harvest.dumpable);
  if (harvest.thp_disabled != 0) mm.set_thp_disabled(true);
  const std::string auxv = task.proc.read("auxv");
  for (size_t at = 0; at + sizeof(uint64_t) <= auxv.size(); at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, auxv.data() + at, sizeof word);
    mm.add_mm_saved_auxv(word);
  }
}

/// Of its own, that is; other tasks of the tree are refused for theirs.
bool has_userfaultfd(pid_t pid) {
  const ProcDir proc(pid);
  return std::ranges::any_of(proc.descriptors(), [&](int fd) {
    try {
      return proc.link("fd/" + std::to_string(fd)) == "anon_inode:[userfaultfd]";
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;
      return false;
    }
  });
}

}  // namespace

void check_mapping(pid_t pid, const Vma& vma) {
  const auto refuse = [&](const char* what, const std::string& remedy) {
    throw Refusal("task " + std::to_string(pid) + " has " + what + ": " + vma.describe(), remedy);
  };
  constexpr const char* kUnmap = "unmap it first, or run the program without it";
  if (is_kernel_made(vma)) return;
  if (vma.name.size() >= PATH_MAX)
    throw Refusal("task " + std::to_string(pid) + " has a file mapped whose path is longer than 4095 bytes", kUnmap);
  if (vma.has(VmFlag::hugetlb)) refuse("hugetlb pages mapped", "run it with transparent huge pages instead");
  if (vma.name.starts_with("/[aio]")) refuse("an asynchronous I/O context", "let it finish its io_setup(2) contexts");
  if (vma.name.starts_with("anon_inode:[io_uring]")) refuse("an io_uring mapped", "run the program without io_uring");
  if (vma.name.starts_with("anon_inode:") || vma.name.starts_with("socket:")) refuse("a kernel object mapped", kUnmap);
  if (vma.name == "[uprobes]") refuse("uprobes set in it", "remove the probes first");
  if (vma.name.starts_with("/secretmem")) refuse("secret memory (memfd_secret)", kUnmap);
  if (vma.has(VmFlag::shadow_stack)) refuse("a shadow stack", "run it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
  if (vma.has(VmFlag::uffd_missing) || vma.has(VmFlag::uffd_wp) || vma.has(VmFlag::uffd_minor)) {
    if (has_userfaultfd(pid)) refuse("memory registered with userfaultfd", "let it unregister first");
    if (vma.has(VmFlag::uffd_wp))
      refuse("memory whose writes another process tracks (userfaultfd)",
             "while it is moved, wait for that; after a pre-dump, `migrate untrack -t " + std::to_string(pid) +
                 "` ends it");
    refuse("memory whose pages another process brings (userfaultfd)", "try again when all of it is there");
  }
  if (vma.protection_key != 0) refuse("memory with a protection key", kUnmap);
  if (vma.has(VmFlag::pfn_map) || vma.has(VmFlag::io)) refuse("device memory mapped", kUnmap);
}

MemoryDumper::MemoryDumper(FileDumper& files, ImageSet& images, bool tracked, Logger& log)
    : files_(files), images_(images), tracked_(tracked), log_(log), shm_device_(internal_shm_device()) {}

void MemoryDumper::add_task(const StoppedTask& task, const TaskHarvest& harvest, TaskMemory memory, pid_t image_pid,
                            ext::TaskExt& extra) {
  std::vector<Vma>& vmas = memory.vmas;
  if (tracked_)
    for (Vma& vma : vmas) vma.flags &= ~static_cast<uint32_t>(VmFlag::uffd_wp);
  img::mm_entry mm;
  fill_areas(task, harvest, mm);
  mm.set_exe_file_id(files_.add_path(task.proc, "exe", O_RDONLY));
  for (const Vma& vma : vmas) {
    check_mapping(task.pid.get(), vma);
    *mm.add_vmas() = describe(task, vma, extra);
    if (vma.has(VmFlag::lock_on_fault)) extra.add_lock_on_fault(vma.range.start.get());
    if (const std::string_view name = given_name(vma); !name.empty()) {
      ext::MappingName& named = *extra.add_names();
      named.set_start(vma.range.start.get());
      named.set_name(std::string(name));
    }
    if (vma.has(VmFlag::sealed) && !is_kernel_made(vma)) extra.add_sealed(vma.range.start.get());
  }
  add_guards(memory.guards, mm);
  try {
    extra.set_coredump_filter(
        parse_number<uint32_t>(task.proc.read("coredump_filter"), "/proc/PID/coredump_filter", 16));
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;  // kernels without core dumps have none
  }
  if (harvest.thp_flags != 0) extra.set_thp_flags(harvest.thp_flags);
  for (const uint64_t segment : harvest.ldt) extra.add_ldt(segment);
  for (const MappingPolicy& p : harvest.policies) {
    ext::MappingPolicy& policy = *extra.add_policies();
    policy.set_start(p.range.start.get());
    policy.set_end(p.range.end.get());
    policy.set_mode(p.mode);
    policy.set_nodes(p.nodes);
  }
  if (harvest.mdwe != 0) extra.set_mdwe(harvest.mdwe);
  if (harvest.memory_merge) extra.set_memory_merge(true);
  if (harvest.lock_future != 0) extra.set_lock_future(harvest.lock_future);
  sources_.push_back({.memory = {MemoryId::Kind::task, static_cast<uint64_t>(image_pid)},
                      .runs = std::move(memory.pages),
                      .fd = task.proc.open("mem", O_RDONLY)});
  images_.put(image_name("mm", static_cast<uint64_t>(image_pid)), magic::kMm, mm);
  log_.debug("task {}: {} mappings, {} pages", task.pid.get(), vmas.size(), sources_.back().pages());
}

img::vma_entry MemoryDumper::describe(const StoppedTask& task, const Vma& vma, ext::TaskExt& extra) {
  img::vma_entry entry;
  entry.set_start(vma.range.start.get());
  entry.set_end(vma.range.end.get());
  entry.set_pgoff(0);
  entry.set_shmid(0);
  entry.set_prot(static_cast<uint32_t>(vma.prot));
  entry.set_flags(map_flags(vma));
  entry.set_status(0);
  entry.set_fd(-1);
  entry.set_madv(is_kernel_made(vma) ? 0 : madvise_bits(vma));
  if (vma.has_file()) {
    describe_file(task, vma, entry, extra);
  } else {
    entry.set_status(anonymous_status(vma));
  }
  return entry;
}

void MemoryDumper::describe_file(const StoppedTask& task, const Vma& vma, img::vma_entry& entry, ext::TaskExt& extra) {
  const std::string link = "map_files/" + vma.link_name();
  entry.set_pgoff(vma.offset);
  if (is_anonymous_shared(vma, shm_device_)) {
    if (segments_.contains(vma.inode)) refuse_same_number(vma);
    auto [it, fresh] = anonymous_shmids_.try_emplace(vma.inode);
    if (fresh) {
      it->second = vma.inode;
      PageSource source{.memory = {MemoryId::Kind::shmem, it->second},
                        .fd = open_shm_object(task.proc.fd(), link, O_RDONLY, shm_device_, vma.inode)};
      if (!source.fd)
        throw Error("task " + std::to_string(task.pid.get()) + " has something else now at its " + vma.describe());
      source.runs = scan_object_pages(source.fd.get());
      for (PageRun& run : source.runs) run.zero_ok = true;
      ext::SharedObject& object = *extra.add_shared_objects();
      object.set_shmid(it->second);
      object.set_bytes(page_ceil(object_size(source.fd.get())));
      sources_.push_back(std::move(source));
    }
    entry.set_status(kRegular | kAnonShared);
    entry.set_flags(entry.flags() | MAP_ANONYMOUS);
    entry.set_shmid(it->second);
    return;
  }
  if (is_segment(vma, shm_device_)) return describe_segment(task, vma, entry);
  const bool memfd = is_memfd(vma, shm_device_);
  // Whether the descriptor it was mapped with could write shows in whether it may be made writable.
  const uint32_t flags = memfd || (vma.shared && vma.has(VmFlag::may_write)) ? O_RDWR : O_RDONLY;
  auto [it, fresh] = file_ids_.try_emplace(FileKey{vma.device, vma.inode, vma.name});
  if (fresh) it->second = memfd ? files_.add_memfd(task.proc, link, flags) : files_.add_path(task.proc, link, flags);
  entry.set_status(kRegular | (vma.shared ? kFileShared : kFilePrivate) | (memfd ? kMemfd : 0));
  entry.set_shmid(it->second);
  entry.set_fdflags(flags);
}

/// Anonymous objects have numbers of their own, which are a segment's only by chance.
void MemoryDumper::refuse_same_number(const Vma& vma) {
  throw Refusal("an object of shared memory has the number of a System V segment: " + vma.describe(),
                "start the program again");
}

void MemoryDumper::describe_segment(const StoppedTask& task, const Vma& vma, img::vma_entry& entry) {
  if (anonymous_shmids_.contains(vma.inode)) refuse_same_number(vma);
  const auto segment = known_segments_.find(vma.inode);
  if (segment == known_segments_.end() || vma.offset > page_ceil(segment->second) ||
      vma.range.bytes() > page_ceil(segment->second) - vma.offset)
    throw Refusal("task " + std::to_string(task.pid.get()) + " has a System V segment mapped beyond its end, or of " +
                      "another IPC namespace: " + vma.describe(),
                  "have the program detach it");
  if (segments_.insert(vma.inode).second) {
    PageSource source{
        .memory = {MemoryId::Kind::shmem, vma.inode},
        .fd = open_shm_object(task.proc.fd(), "map_files/" + vma.link_name(), O_RDONLY, shm_device_, vma.inode)};
    if (!source.fd)
      throw Error("task " + std::to_string(task.pid.get()) + " has something else now at its " + vma.describe());
    add_object(std::move(source));
  }
  entry.set_status(kRegular | kAnonShared | kSysvIpc);
  entry.set_flags(entry.flags() | MAP_ANONYMOUS);
  entry.set_shmid(vma.inode);
  entry.set_fdflags(vma.has(VmFlag::may_write) ? O_RDWR : O_RDONLY);
}

void MemoryDumper::add_object(PageSource source) {
  source.runs = scan_object_pages(source.fd.get());
  for (PageRun& run : source.runs) run.zero_ok = true;
  sources_.push_back(std::move(source));
}

void MemoryDumper::add_segments(std::map<int, uint64_t> sizes, std::map<int, Fd> unattached) {
  for (const auto& [id, bytes] : sizes) known_segments_.emplace(static_cast<uint64_t>(id), bytes);
  for (auto& [id, fd] : unattached) {
    const auto shmid = static_cast<uint64_t>(id);
    segments_.insert(shmid);
    add_object({.memory = {MemoryId::Kind::shmem, shmid}, .runs = {}, .fd = std::move(fd)});
  }
}

std::vector<PageSource> MemoryDumper::finish() {
  for (SharedObject& object : files_.take_shared_objects()) {
    if (segments_.contains(object.shmid))
      throw Refusal("a memfd has the number of System V segment " + std::to_string(object.shmid),
                    "start the program again");
    add_object({.memory = {MemoryId::Kind::shmem, object.shmid}, .runs = {}, .fd = std::move(object.fd)});
  }
  return std::move(sources_);
}

}  // namespace migrate
