#include "core/dump/task_memory.h"

#include <algorithm>
#include <charconv>
#include <future>

#include "core/memory/page_scan.h"

namespace migrate {
namespace {

/// From here on (16 MiB) a thread costs less than it saves.
constexpr uint64_t kLargePages = 4096;

uint64_t resident_pages(const ProcDir& proc) {
  const std::string statm = proc.read("statm");
  uint64_t pages = 0;
  const size_t space = statm.find(' ');
  if (space != std::string::npos) std::from_chars(statm.data() + space + 1, statm.data() + statm.size(), pages);
  return pages;
}

/// All but flags, which maps does not tell.
bool same_mapping(const Vma& a, const Vma& b) {
  return a.range.start == b.range.start && a.range.end == b.range.end && a.prot == b.prot && a.shared == b.shared &&
         a.offset == b.offset && a.device == b.device && a.inode == b.inode && a.name == b.name;
}

/// Neighbours of one kind, scanned in one go.
struct Group {
  bool anonymous;
  std::vector<RemoteRange> ranges;
};

/// A shared or kernel-made mapping in between ends a group of anonymous ones: its pages may be a file's. What may be
/// dropped at any time is dropped: keys of vgetrandom(2), above all, which nobody else should come to know.
std::vector<Group> private_groups(const std::vector<Vma>& vmas) {
  std::vector<Group> groups;
  bool neighbour = false;
  for (const Vma& vma : vmas) {
    const bool wanted = !vma.shared && !is_kernel_made(vma) && !vma.has(VmFlag::droppable);
    if (wanted) {
      const bool anonymous = !vma.has_file();
      if (!neighbour || groups.back().anonymous != anonymous) groups.push_back({anonymous, {}});
      groups.back().ranges.push_back(vma.range);
    }
    neighbour = wanted;
  }
  return groups;
}

/// A page of zeros may be left out of private anonymous memory only.
void scan_pages(int pagemap, const std::vector<Vma>& vmas, TaskMemory& memory) {
  for (const Group& group : private_groups(vmas)) {
    for (PageRun run : scan_private_pages(pagemap, group.ranges, group.anonymous, &memory.guards)) {
      run.zero_ok = group.anonymous;
      memory.pages.push_back(run);
    }
  }
  std::vector<RemoteRange> shared;
  for (const Vma& vma : vmas) {
    // The vdso's code is needed where another kernel has another one. Its pages are the kernel's, not anonymous ones.
    if (vma.name == "[vdso]") memory.pages.push_back({vma.range.start.get(), vma.range.pages()});
    if (vma.shared && !is_kernel_made(vma)) shared.push_back(vma.range);
  }
  const std::vector<PageRun> of_shared = scan_guard_pages(pagemap, shared);
  memory.guards.insert(memory.guards.end(), of_shared.begin(), of_shared.end());
  const auto ascending = [](const PageRun& a, const PageRun& b) { return a.address < b.address; };
  std::sort(memory.pages.begin(), memory.pages.end(), ascending);
  std::sort(memory.guards.begin(), memory.guards.end(), ascending);
}

}  // namespace

bool is_vvar(const Vma& vma) { return vma.name == "[vvar]" || vma.name == "[vvar_vclock]"; }
bool is_kernel_made(const Vma& vma) { return is_vvar(vma) || vma.name == "[vdso]" || vma.name == "[vsyscall]"; }

std::vector<Vma> foresee_mappings(const ProcDir& proc, const MappingReader& reader) {
  try {
    if (resident_pages(proc) >= kLargePages && !reader.read_quickly(proc)) return parse_smaps(proc.read("smaps"));
  } catch (const Error&) {  // it ended meanwhile
  }
  return {};
}

TaskMemory read_task_memory(const ProcDir& proc, const MappingReader& reader, const std::vector<Vma>& foreseen) {
  TaskMemory memory;
  const Fd pagemap = proc.open("pagemap", O_RDONLY);
  auto quick = reader.read_quickly(proc);
  if (quick || resident_pages(proc) < kLargePages) {
    memory.vmas = quick ? std::move(*quick) : parse_smaps(proc.read("smaps"));
    scan_pages(pagemap.get(), memory.vmas, memory);
    return memory;
  }
  memory.vmas = parse_smaps(proc.read("maps"));
  memory.foreseen = std::equal(memory.vmas.begin(), memory.vmas.end(), foreseen.begin(), foreseen.end(), same_mapping);
  if (memory.foreseen) {
    memory.vmas = foreseen;
    scan_pages(pagemap.get(), memory.vmas, memory);
    return memory;
  }
  // Waited for by its destructor, whatever happens.
  std::future<std::string> smaps = std::async(std::launch::async, [&proc] { return proc.read("smaps"); });
  scan_pages(pagemap.get(), memory.vmas, memory);
  memory.vmas = parse_smaps(smaps.get());
  return memory;
}

const Vma* changed_flags(const std::vector<Vma>& then, const std::vector<Vma>& now, uint32_t ignored) {
  auto at = now.begin();
  for (const Vma& vma : then) {
    // By address: neighbours may have been merged since (by the end of a userfaultfd registration).
    while (at != now.end() && at->range.end <= vma.range.start) ++at;
    if (at == now.end() || at->range.start > vma.range.start || at->range.end < vma.range.end) return &vma;
    if (((at->flags ^ vma.flags) & ~ignored) != 0 || at->protection_key != vma.protection_key) return &vma;
  }
  return nullptr;
}

}  // namespace migrate
