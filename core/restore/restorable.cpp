#include "core/restore/restorable.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <map>
#include <set>

#include "core/files/restore_files.h"
#include "core/restore/descriptor_room.h"
#include "core/restore/memory_policies.h"
#include "core/restore/plans.h"
#include "core/restore/staged_areas.h"
#include "core/task/core_image.h"

namespace migrate {
namespace {

/// What the shell keeps besides files of mappings: sockets, the coordinator's pidfd, duplicates on their way.
constexpr size_t kOwn = 16;

size_t hard_limit() {
  rlimit limit{};
  check(::getrlimit(RLIMIT_NOFILE, &limit), "read", "the limit of open files");
  return limit.rlim_max;
}

void check_address_space(const TaskImage& task, const std::vector<AddressRange>& pages) {
  std::set<size_t> staged;
  for (const size_t i : mappings_to_stage(task.vmas, pages)) staged.insert(i);
  std::vector<AddressRange> moved, others, busy = own_mappings();
  for (size_t i = 0; i < task.vmas.size(); ++i)
    (staged.contains(i) ? moved : others).push_back({task.vmas[i].start, task.vmas[i].end});
  try {
    const uint64_t distance = pick_distance(moved, others, busy);
    for (const AddressRange& r : moved) {
      const uint64_t at = staged_address(r.start, distance);
      busy.push_back({at, at + (r.end - r.start)});
    }
    for (const ImageVma& v : task.vmas) busy.push_back({v.start, v.end});
    AddressPicker picker(std::move(busy));
    picker.pick(restorer_room(task.vmas.size(), staged.size(), task.tids.size()));
  } catch (const Error& e) {
    throw Refusal("task " + std::to_string(task.pid) +
                      " uses so much of its address space that there is no room beside it: " + e.what(),
                  "let the program reserve less, if it can be told to");
  }
}

}  // namespace

void check_buildable(const std::vector<ProcDir>& tasks, bool inherit_outside) {
  std::vector<TaskNode> nodes;
  std::map<pid_t, int> places;  // by our numbers
  for (const ProcDir& task : tasks) {
    try {
      const pid_t parent = task.stat().ppid;
      auto status = task.status();
      TaskNode node;
      node.pid = innermost(status["NSpid"]);
      node.pgid = innermost(status["NSpgid"]);
      node.sid = innermost(status["NSsid"]);
      node.threads = {node.pid};
      if (!nodes.empty()) {
        const auto place = places.find(parent);
        if (place == places.end()) return;  // its parent has just ended: the images will tell
        node.parent = place->second;
        node.ppid = nodes[static_cast<size_t>(node.parent)].pid;
        nodes[static_cast<size_t>(node.parent)].children.push_back(static_cast<int>(nodes.size()));
      }
      places.emplace(task.pid(), static_cast<int>(nodes.size()));
      nodes.push_back(std::move(node));
    } catch (const Error& e) {
      if (nodes.empty() || (e.code() != ESRCH && e.code() != ENOENT)) throw;
    }
  }
  plan_tree(nodes, inherit_outside);
}

void check_tables(std::span<const TaskImage> tasks) {
  std::map<uint32_t, pid_t> seen;
  for (const TaskImage& task : tasks) {
    const auto [other, fresh] = seen.emplace(task.ids.files_id(), task.pid);
    if (!fresh)
      throw Refusal("tasks " + std::to_string(other->second) + " and " + std::to_string(task.pid) +
                        " shared their descriptor table (CLONE_FILES)",
                    "such images cannot be restored yet");
  }
}

void check_restorable(const ImageSet& images, std::span<const PageSource> memories, bool shell_job) {
  std::vector<TaskNode> tasks = read_tree(images);
  plan_tree(tasks, shell_job);
  const std::vector<AddressRange>& kernel = own_kernel_mappings();
  std::map<pid_t, std::vector<AddressRange>> pages;
  for (const PageSource& memory : memories) {
    if (memory.memory.kind != MemoryId::Kind::task) continue;
    std::vector<AddressRange>& runs = pages[static_cast<pid_t>(memory.memory.id)];
    for (const PageRun& r : memory.runs) runs.push_back({r.address, r.address + r.pages * kPageSize});
  }
  std::set<std::pair<uint64_t, int>> mapped;
  const std::vector<TaskImage> images_of = read_tasks(images, tasks);
  check_tables(images_of);
  const uint64_t nodes = usable_nodes();
  for (const TaskImage& task : images_of) {
    check_privileges(task);
    check_policies(task, nodes);
    check_kernel_mappings(task, kernel);
    check_mapping_kinds(task);
    check_address_space(task, pages[task.pid]);
    mapped.insert({{task.mm.exe_file_id(), O_RDONLY}, {task.fs.cwd_id(), O_RDONLY}, {task.fs.root_id(), O_RDONLY}});
    for (const ImageVma& v : task.vmas) mapped.insert({v.object, v.open_flags});
  }
  const size_t needed = kOwn + mapped.size();
  find_descriptor_room(images, needed, hard_limit());
  check_files_restorable(images, hard_limit() - std::min(hard_limit(), needed));
}

}  // namespace migrate
