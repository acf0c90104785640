#include "core/dump/tree_images.h"

#include <time.h>

#include <sstream>

#include "core/base/proc_values.h"
#include "core/files/terminal_dump.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/cgroup.pb.h"
#include "images/fs.pb.h"
#include "images/inventory.pb.h"
#include "images/pstree.pb.h"
#include "images/timens.pb.h"

namespace migrate {
namespace {

// The ids say only what is the same and what is not. The tree is in the dumper's namespaces, but for the time
// namespace: it always gets a new one, in which its clocks go on; and the IPC namespace, if it has one or objects in
// one.
enum NamespaceId : uint32_t {
  kPidNs = 1,
  kNetNs,
  kIpcNs,
  kUtsNs,
  kMntNs,
  kUserNs,
  kCgroupNs,
  kTimeNs,
  kTreeTimeNs,
  kTreeIpcNs
};

void fill_namespaces(uint32_t time_ns, img::task_kobj_ids_entry& ids) {
  ids.set_pid_ns_id(kPidNs);
  ids.set_net_ns_id(kNetNs);
  ids.set_ipc_ns_id(kIpcNs);
  ids.set_uts_ns_id(kUtsNs);
  ids.set_mnt_ns_id(kMntNs);
  ids.set_user_ns_id(kUserNs);
  ids.set_cgroup_ns_id(kCgroupNs);
  ids.set_time_ns_id(time_ns);
}

void fill_set(const std::string& text, img::cg_set_entry& set) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {  // "4:memory:/a/b", "0::/a/b"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    img::cg_member_entry& member = *set.add_ctls();
    member.set_name(line.substr(first + 1, second - first - 1));
    member.set_path(line.substr(second + 1));
  }
}

}  // namespace

TaskNumbers task_numbers(const StoppedTask& task, const ImagePids& pids, bool root) {
  auto status = task.proc.status();
  return {.pid = pids.of(task.pid.get()),
          .ppid = root ? 0 : pids.of(task.parent.get()),
          .pgid = innermost(status["NSpgid"]),
          .sid = innermost(status["NSsid"])};
}

void fill_root_ids(img::task_kobj_ids_entry& ids) {
  ids.set_vm_id(0);
  ids.set_files_id(0);
  ids.set_fs_id(0);
  ids.set_sighand_id(0);
  fill_namespaces(kTimeNs, ids);
}

uint32_t own_ipc_namespace_id() { return kTreeIpcNs; }

void fill_task_ids(uint32_t ordinal, uint32_t files_id, bool own_ipc, img::task_kobj_ids_entry& ids) {
  ids.set_vm_id(ordinal);
  ids.set_files_id(files_id);
  ids.set_fs_id(ordinal);
  ids.set_sighand_id(ordinal);
  fill_namespaces(kTreeTimeNs, ids);
  if (own_ipc) ids.set_ipc_ns_id(kTreeIpcNs);
}

uint32_t CgroupSets::add(const ProcDir& task) {
  return sets_.try_emplace(task.read("cgroup"), static_cast<uint32_t>(sets_.size() + 1)).first->second;
}

void CgroupSets::write(ImageSet& images) const {
  img::cgroup_entry entry;
  for (const auto& [text, id] : sets_) {
    img::cg_set_entry& set = *entry.add_sets();
    set.set_id(id);
    fill_set(text, set);
  }
  if (entry.sets_size() != 0) {
    for (const img::cg_member_entry& member : entry.sets(0).ctls()) {
      img::cg_controller_entry& controller = *entry.add_controllers();
      std::istringstream names(member.name());
      for (std::string name; std::getline(names, name, ',');) controller.add_cnames(name);
      if (controller.cnames_size() == 0) controller.add_cnames("");  // the unified hierarchy
    }
  }
  images.put("cgroup.img", magic::kCgroup, entry);
}

namespace {

/// The number of its controlling terminal, if that is a pseudo-terminal; else -1.
int controlling_terminal(const StoppedTask& task) {
  if (task.state == TaskState::zombie) return -1;
  return pseudo_terminal(task.proc.stat().tty_nr);
}

}  // namespace

void write_pstree(const std::vector<StoppedTask>& tasks, const ImagePids& pids, ImageSet& images) {
  ImageWriter out = images.write("pstree.img", magic::kPstree);
  for (const StoppedTask& task : tasks) {
    const TaskNumbers numbers = task_numbers(task, pids, &task == &tasks.front());
    img::pstree_entry entry;
    entry.set_pid(static_cast<uint32_t>(numbers.pid));
    entry.set_ppid(static_cast<uint32_t>(numbers.ppid));
    entry.set_pgid(static_cast<uint32_t>(numbers.pgid));
    entry.set_sid(static_cast<uint32_t>(numbers.sid));
    for (const StoppedThread& thread : task.threads)
      entry.add_threads(static_cast<uint32_t>(pids.of(thread.tid.get())));
    if (task.threads.empty()) entry.add_threads(entry.pid());
    out.entry(entry);
    if (const int index = controlling_terminal(task); index >= 0) {
      ext::ControllingTerminal terminal;
      terminal.set_pid(entry.pid());
      terminal.set_index(static_cast<uint32_t>(index));
      images.write(kControllingImage, kControllingMagic).entry(terminal);
    }
  }
}

void write_fs(const StoppedTask& task, pid_t image_pid, FileDumper& files, ImageSet& images) {
  img::fs_entry entry;
  entry.set_cwd_id(files.add_path(task.proc, "cwd", O_RDONLY | O_DIRECTORY));
  entry.set_root_id(files.add_path(task.proc, "root", O_RDONLY | O_DIRECTORY));
  entry.set_umask(parse_number<uint32_t>(status_field(task.proc.status(), "Umask"), "/proc/PID/status: Umask", 8));
  images.put(image_name("fs", static_cast<uint64_t>(image_pid)), magic::kFs, entry);
}

void write_timens(const TaskHarvest& root, ImageSet& images) {
  img::timens_entry entry;
  entry.mutable_monotonic()->set_tv_sec(static_cast<uint64_t>(root.monotonic.tv_sec));
  entry.mutable_monotonic()->set_tv_nsec(static_cast<uint64_t>(root.monotonic.tv_nsec));
  entry.mutable_boottime()->set_tv_sec(static_cast<uint64_t>(root.boottime.tv_sec));
  entry.mutable_boottime()->set_tv_nsec(static_cast<uint64_t>(root.boottime.tv_nsec));
  images.put(image_name("timens", kTreeTimeNs), magic::kTimens, entry);
}

void write_inventory(bool tcp_close, ImageSet& images) {
  struct timespec uptime {};
  ::clock_gettime(CLOCK_BOOTTIME, &uptime);
  img::inventory_entry entry;
  entry.set_img_version(2);
  entry.set_fdinfo_per_id(true);
  entry.set_ns_per_id(true);
  entry.set_root_cg_set(1);
  entry.set_lsmtype(img::NO_LSM);
  entry.set_dump_uptime(static_cast<uint64_t>(uptime.tv_sec) * 1'000'000 +
                        static_cast<uint64_t>(uptime.tv_nsec) / 1'000);
  if (tcp_close) entry.set_tcp_close(true);
  fill_root_ids(*entry.mutable_root_ids());
  images.put("inventory.img", magic::kInventory, entry);
}

}  // namespace migrate
