// Hostile images: everything that reads them up to the lists of calls that a restore would make.
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>

#include "core/files/hidden_sockets.h"
#include "core/files/image_tables.h"
#include "core/files/restore_files.h"
#include "core/restore/address_space.h"
#include "core/restore/descriptor_room.h"
#include "core/restore/namespaces.h"
#include "core/restore/plans.h"
#include "core/restore/restorable.h"
#include "core/restore/task_image.h"
#include "core/restore/tree_order.h"
#include "core/task/xsave.h"
#include "fuzz.h"
#include "image_records.h"
#include "migrate/session/guardian/identity_policy.h"

namespace migrate::fuzz {
namespace {

constexpr size_t kMostTasks = 4;  ///< of which the plans are made
constexpr uint32_t kAllowed = 1000;
constexpr uint64_t kElapsed = 5'000'000'000;

/// What the receiver allows.
enum class Policy { all, users, groups };

void enforce(Policy policy, ImageSet& images) {
  IdentityPolicy only;
  only.deny_capabilities = uint64_t{1} << 21;
  if (policy == Policy::users) only.allow_uids = {kAllowed};
  if (policy == Policy::groups) only.allow_gids = {0, kAllowed};
  if (policy == Policy::groups) only.deny_capabilities = 0;
  if (policy != Policy::all) enforce_identity(only, images);
}

const std::vector<AddressRange>& kernel_mappings() {
  static const std::vector<AddressRange> kMappings = own_kernel_mappings();
  return kMappings;
}

void check_tree(const std::vector<TaskNode>& tasks) {
  for (size_t i = 0; i < tasks.size(); ++i) {
    demand(tasks[i].pid > 0 && tasks[i].parent < static_cast<int>(i), "a tree out of order");
    demand(i == 0 || tasks[i].parent >= 0, "two roots");
    for (const int child : tasks[i].children) demand(static_cast<size_t>(child) < tasks.size(), "a child of nothing");
  }
}

void check_vmas(const TaskImage& task) {
  uint64_t last = 0;
  for (const ImageVma& v : task.vmas) {
    demand(v.start >= last && v.start < v.end && v.end <= kUserEnd, "mappings out of order");
    demand(v.start % kPageSize == 0 && v.end % kPageSize == 0, "a mapping not on page bounds");
    demand(!v.has(kVmaAnonShared) || v.has_file() || v.pgoff + v.bytes() <= kUserEnd, "a shared object without end");
    last = v.end;
  }
  last = 0;
  for (const ImageVma& g : task.guards) {
    demand(g.start >= last && g.start < g.end && g.end <= kUserEnd, "guards out of order");
    last = g.end;
  }
}

/// The restorer runs as root: memory calls stay in user space, ids are those that were allowed.
void check_list(const OpList& list, Policy policy) {
  for (const restorer::Record& r : list.records()) {
    if (r.op != restorer::Op::syscall) continue;
    switch (r.nr) {
      case SYS_mmap:
      case SYS_munmap:
      case SYS_mprotect:
      case SYS_madvise:
      case SYS_mlock:
      case SYS_mlock2:
        demand(r.args[0] % kPageSize == 0 && r.args[0] <= kUserEnd && r.args[1] <= kUserEnd - r.args[0],
               "a memory call out of range");
        break;
      case SYS_setresuid:
        for (int i = 0; i < 3 && policy == Policy::users; ++i)
          demand(r.args[i] == kAllowed, "a user that is not allowed");
        break;
      case SYS_setresgid:
        for (int i = 0; i < 3 && policy == Policy::groups; ++i)
          demand(r.args[i] == 0 || r.args[i] == kAllowed, "a group that is not allowed");
        break;
      default:
        break;
    }
  }
}

std::vector<StagedRange> stage(const ImageSet& images, const TaskImage& task) {
  const auto runs = pagemap_runs(images, image_name("pagemap", static_cast<uint64_t>(task.pid)));
  if (runs) {
    uint64_t last = 0;
    for (const AddressRange& r : *runs) {
      demand(r.start >= last && r.start < r.end, "pages out of order");
      last = r.end;
    }
  }
  std::vector<AddressRange> busy;
  for (const ImageVma& v : task.vmas) busy.push_back({v.start, v.end});
  AddressPicker picker(std::move(busy));
  std::vector<StagedRange> staged;
  for (const size_t i : mappings_to_stage(task.vmas, runs)) {
    const ImageVma& v = task.vmas[i];
    staged.push_back({i, v.start, v.bytes(), picker.pick(v.bytes(), v.start), v.has_file(), v.prot == PROT_NONE});
  }
  return staged;
}

void plan(const ImageSet& images, const TaskImage& task, Policy policy) {
  check_vmas(task);
  const std::vector<StagedRange> staged = stage(images, task);
  std::vector<AddressRange> kernel = kernel_mappings();
  try {
    check_kernel_mappings(task, kernel);
  } catch (const Refusal&) {  // a seed of another kernel
    kernel.clear();
  }
  constexpr uint64_t kBase = 0x10000000, kRoom = 1 << 24;
  Region region(kBase);
  OpList list;
  const auto descriptor = [](const ImageVma& v) { return v.has_file() || v.has(kVmaAnonShared) ? 7 : -1; };
  plan_memory({task, staged, {kBase, kBase + kRoom}, kBase + 2 * kRoom, kernel, descriptor, 8}, region, list);
  plan_task(task, {5, 6, true}, kElapsed, region, list);
  check_list(list, policy);
  for (const img::core_entry& core : task.cores) {
    const std::vector<std::byte> area = unpack_xsave(core.thread_info().fpregs());
    img::user_x86_fpregs_entry again;
    std::string unknown;
    demand(pack_xsave(area, again, unknown), "a state that cannot be dumped");
  }
  check_privileges(task);
}

void read_files(const ImageSet& images) {
  const auto entries = read_file_entries(images);
  for (const auto& [id, entry] : entries) {
    demand(entry.id() == id, "a file of another id");
    flags_of(entry);
    owner_of(entry);
  }
  for (const uint32_t table : table_ids(images)) {
    const auto numbers = read_table(images, table);
    for (size_t i = 1; i < numbers.size(); ++i)
      demand(numbers[i - 1].fd() < numbers[i].fd(), "descriptors out of order");
  }
  const DescriptorRoom room = find_descriptor_room(images, 20, 1 << 20);
  for (const uint32_t table : table_ids(images))
    for (const auto& e : read_table(images, table))
      demand(static_cast<int>(e.fd()) < room.floor || static_cast<int>(e.fd()) >= room.end, "no room after all");
  for (const std::string& folder : unix_socket_folders(images)) demand(folder.starts_with("/"), "a relative folder");
}

template <class Work>
void attempt(const Work& work) {
  try {
    work();
  } catch (const Error&) {  // as it should be
  }
}

}  // namespace

const Target kTarget{"image_fuzz", true};

void run(std::span<const std::byte> input) {
  const auto policy = std::array{Policy::all, Policy::users, Policy::all, Policy::groups}[input.size() % 4];
  ImageSet images = images_from(records_of(input));
  attempt([&] { read_files(images); });
  attempt([&] { elapsed_since_dump_ns(images); });
  attempt([&] { wanted_clocks(images, {}); });
  attempt([&] {
    enforce(policy, images);
    std::vector<TaskNode> tasks = read_tree(images), again = tasks;
    check_tree(tasks);
    attempt([&] { plan_tree(tasks, policy == Policy::all); });
    attempt([&] { plan_change(tasks, again); });
    size_t planned = 0;
    for (const TaskNode& node : tasks)
      if (!node.zombie && planned++ < kMostTasks) attempt([&] { plan(images, read_task(images, node), policy); });
  });
}

std::vector<std::vector<std::byte>> seeds() { return {}; }

}  // namespace migrate::fuzz
