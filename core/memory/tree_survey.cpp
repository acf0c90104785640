#include "core/memory/tree_survey.h"

#include <algorithm>

#include "core/base/procfs.h"
#include "core/memory/page_runs.h"
#include "core/memory/page_scan.h"
#include "core/memory/track_mappings.h"
#include "core/memory/vma.h"

namespace migrate {
namespace {

constexpr uint64_t kHuge = 2 << 20;

bool is_staged(const Vma& vma) {
  return !vma.shared && !vma.has_file() && vma.name != "[vdso]" && !vma.name.starts_with("[vvar") &&
         vma.name != "[vsyscall]" && !vma.has(VmFlag::hugetlb) && !vma.has(VmFlag::pfn_map) && !vma.has(VmFlag::io);
}

/// "always", "madvise" or "never".
bool huge_pages_everywhere() {
  try {
    return read_file_at(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/enabled").find("[always]") != std::string::npos;
  } catch (const Error&) {  // a kernel without
    return false;
  }
}

bool wants_huge_pages(const ProcDir& proc) {
  const auto status = proc.status();
  const auto enabled = status.find("THP_enabled");
  return enabled != status.end() && enabled->second.starts_with('1');
}

void survey_task(const LivingTask& living, const MappingReader& mappings, bool everywhere, TreeSurvey& survey) {
  const ProcDir proc(living.pid);
  TreeLayout::Task task = layout_of(living);
  std::vector<PageReserve> pages;
  if (!living.borrows_memory && !living.ended) {
    std::vector<RemoteRange> ranges;
    std::vector<PageRun> huge;
    const bool wants = wants_huge_pages(proc);
    const Fd pagemap = proc.open("pagemap", O_RDONLY);
    for (const Vma& vma : mappings.read(proc)) {
      if (!is_staged(vma)) continue;
      append_area(task.areas, vma);
      ranges.push_back(vma.range);
      if (wants && !vma.has(VmFlag::no_huge_page) && (everywhere || vma.has(VmFlag::huge_page)))
        huge.push_back({vma.range.start.get(), vma.range.pages()});
    }
    pages = split_huge({MemoryId::Kind::task, static_cast<uint64_t>(living.image_pid)},
                       scan_private_pages(pagemap.get(), ranges, true), huge);
  }
  survey.layout.tasks.push_back(std::move(task));
  survey.pages.insert(survey.pages.end(), pages.begin(), pages.end());
}

}  // namespace

std::vector<PageReserve> split_huge(MemoryId memory, const std::vector<PageRun>& runs,
                                    const std::vector<PageRun>& allowed) {
  std::vector<PageReserve> out;
  const auto add = [&](uint64_t start, uint64_t end, bool huge) {
    if (start < end) out.push_back({memory, start, (end - start) / kPageSize, huge});
  };
  const PageSet may_be_huge = pages_of(allowed);
  for (const PageRun& run : runs) {
    uint64_t at = run.address;
    const uint64_t end = at + run.pages * kPageSize;
    const PageSet parts = PageSet(at, end) & may_be_huge;
    for (const PageSet::Range& part : parts.ranges()) {
      const uint64_t first = (part.start + kHuge - 1) / kHuge * kHuge;
      const uint64_t last = part.end / kHuge * kHuge;
      if (first >= last) continue;
      add(at, first, false);
      add(first, last, true);
      at = last;
    }
    add(at, end, false);
  }
  return out;
}

TreeSurvey survey_tree(Pid root, const MappingReader& mappings) {
  const std::vector<LivingTask> tasks = list_living(root, true);
  if (tasks.empty()) throw Error("look at task", std::to_string(root.get()), ESRCH);
  return survey_tasks(tasks, mappings);
}

TreeSurvey survey_tasks(const std::vector<LivingTask>& tasks, const MappingReader& mappings) {
  TreeSurvey survey;
  const bool everywhere = huge_pages_everywhere();
  for (const LivingTask& living : tasks) {
    try {
      survey_task(living, mappings, everywhere, survey);
    } catch (const Error& e) {
      if (living.parent == 0 || (e.code() != ESRCH && e.code() != ENOENT)) throw;
    }
  }
  // A task whose parent was left out has no place in a layout.
  std::vector<pid_t> known;
  std::erase_if(survey.layout.tasks, [&](const TreeLayout::Task& task) {
    const bool lost = task.ppid != 0 && std::find(known.begin(), known.end(), task.ppid) == known.end();
    if (!lost) known.push_back(task.pid);
    return lost;
  });
  return survey;
}

std::vector<PageDiscard> unused_pages(const std::vector<PageReserve>& reserved,
                                      const std::vector<PageSource>& existing) {
  PagesByMemory of;
  for (const PageReserve& r : reserved) of[r.memory].append(r.address, r.address + r.pages * kPageSize);
  std::vector<PageDiscard> unused;
  for (const auto& [memory, pages] : of) {
    const auto source =
        std::find_if(existing.begin(), existing.end(), [id = memory](const PageSource& s) { return s.memory == id; });
    const PageSet gone = pages - (source == existing.end() ? PageSet() : pages_of(source->runs));
    for (const PageSet::Range& r : gone.ranges()) unused.push_back({memory, r.start, (r.end - r.start) / kPageSize});
  }
  return unused;
}

}  // namespace migrate
