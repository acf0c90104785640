#include "core/restore/shell_finish.h"

#include <linux/close_range.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <optional>
#include <set>

#include "core/files/restore_files.h"
#include "core/ipc/ipc_images.h"
#include "core/restore/address_space.h"
#include "core/restore/namespaces.h"
#include "core/restore/plans.h"
#include "core/restore/restorable.h"

extern "C" {
extern const unsigned char restorer_blob_start[];
extern const unsigned char restorer_blob_end[];
}

namespace migrate {
namespace {

using restorer::Op;
using restorer::Tag;

constexpr size_t kLeaderStack = 16384;

/// What was staged must be what the final images describe.
void check_same_layout(const TaskImage& task, const TaskImage& staged) {
  bool same = task.vmas.size() == staged.vmas.size();
  for (size_t i = 0; same && i < task.vmas.size(); ++i)
    same = task.vmas[i].start == staged.vmas[i].start && task.vmas[i].end == staged.vmas[i].end;
  if (!same) throw Error("the mappings of task " + std::to_string(task.pid) + " changed after its memory was staged");
}

/// Written even if it is the value that we have: where we may, that also takes away the lower value that our own
/// service manager let us go back to, and with us the task.
void set_oom_score(const TaskImage& task) {
  const std::string wanted = std::to_string(task.core().tc().oom_score_adj());
  const Fd file = open_path("/proc/self/oom_score_adj", O_WRONLY);
  check(::write(file.get(), wanted.data(), wanted.size()), "write",
        "oom_score_adj of task " + std::to_string(task.pid) + ", " + wanted);
}

void set_coredump_filter(const TaskImage& task) {
  constexpr uint32_t kUsualFilter = 0x33;
  const ext::TaskExt& extra = task.task_extra();
  const Fd file = open_path("/proc/self/coredump_filter", O_WRONLY);
  write_full(file.get(),
             as_bytes_of(std::to_string(extra.has_coredump_filter() ? extra.coredump_filter() : kUsualFilter)),
             "coredump_filter of task " + std::to_string(task.pid));
}

/// Else audit would take what the task does for deeds of whoever started us. It may be set once only, by kernels with
/// auditing that were told so: then it stays.
void set_login_uid(const TaskImage& task) {
  constexpr uint32_t kNobody = UINT32_MAX;
  const img::task_core_entry& tc = task.core().tc();
  const std::string wanted = std::to_string(tc.has_loginuid() ? tc.loginuid() : kNobody);
  const Fd file(::open("/proc/self/loginuid", O_WRONLY | O_CLOEXEC));
  if (file) (void)!::write(file.get(), wanted.data(), wanted.size());
}

FolderFds folders(const ShellContext& context, const TaskImage& task) {
  FolderFds fds;
  fds.cwd = context.files.at({task.fs.cwd_id(), kWorkFolder});
  if (task.fs.root_id() == 0) return fds;
  fds.root = context.files.at({task.fs.root_id(), kRootFolder});
  struct stat wanted {
  }, own{};
  check(::fstat(fds.root, &wanted), "stat", "the root folder of a task");
  check(::stat("/", &own), "stat", "/");
  fds.change_root = wanted.st_dev != own.st_dev || wanted.st_ino != own.st_ino;
  return fds;
}

/// -1 (leave it) if the task runs the same file as we do: the kernel refuses (EBUSY) while the old file is mapped.
int executable(const ShellContext& context, const TaskImage& task) {
  const int fd = context.files.at({task.mm.exe_file_id(), O_RDONLY});
  struct stat wanted {
  }, own{};
  check(::fstat(fd, &wanted), "stat", "the executable of a task");
  check(::stat("/proc/self/exe", &own), "stat", "/proc/self/exe");
  return wanted.st_dev == own.st_dev && wanted.st_ino == own.st_ino ? -1 : fd;
}

/// The kernel writes to a registered area whenever the thread is moved; ours is about to be unmapped.
void unregister_rseq() {
  const uint64_t area = reinterpret_cast<uint64_t>(__builtin_thread_pointer()) + static_cast<uint64_t>(__rseq_offset);
  // glibc registers with the size of the original ABI, whatever __rseq_size says.
  constexpr uint32_t kOriginalSize = 32;
  constexpr uint32_t kUnregister = 1;
  for (const uint32_t size : {kOriginalSize, __rseq_size})
    if (size != 0 && ::syscall(SYS_rseq, area, size, kUnregister, RSEQ_SIG) == 0) return;
}

/// Address space for what is on its way into place.
struct Rooms {
  uint64_t parking = 0, attaching = 0;
  std::map<uint64_t, uint64_t> segments;  ///< sizes in whole pages
};

/// Those that the task has attached.
std::map<uint64_t, uint64_t> segment_sizes(const ImageSet& images, const TaskImage& task) {
  std::set<uint64_t> attached;
  for (const ImageVma& v : task.vmas)
    if (v.has(kVmaSysvIpc)) attached.insert(v.object);
  std::map<uint64_t, uint64_t> sizes;
  const std::optional<IpcImages> ipc = attached.empty() ? std::nullopt : read_ipc_images(images);
  if (!ipc) return sizes;
  for (const img::ipc_shm_entry& e : ipc->segments)
    if (attached.contains(e.desc().id())) sizes.emplace(e.desc().id(), page_ceil(e.size()));
  return sizes;
}

struct Entry {
  uint64_t base, header, list, stack_top;
};

Entry build_region(const ShellContext& context, const ImageSet& images, const TaskImage& task,
                   const std::vector<StagedRange>& staged, Region& region, AddressRange reserved, const Rooms& rooms,
                   int control) {
  region.put(std::as_bytes(std::span(restorer_blob_start, restorer_blob_end)));
  Entry entry{};
  entry.base = region.base();
  entry.header = region.put_value(restorer::Header{static_cast<uint32_t>(control), 0});
  OpList list;
  plan_memory({task, staged, reserved, rooms.parking, own_kernel_mappings(),
               [&](const ImageVma& v) {
                 if (v.has_file()) return context.files.at({v.object, v.open_flags});
                 return v.has(kVmaAnonShared) ? context.shared_memory.at(v.object) : -1;
               },
               executable(context, task), rooms.attaching, rooms.segments},
              region, list);
  plan_task(task, folders(context, task), elapsed_since_dump_ns(images), region, list);
  list.add(Op::ready, Tag::count, {reserved.start, reserved.end - reserved.start});
  entry.list = region.put_list(list);
  entry.stack_top = region.put_stack(kLeaderStack) + kLeaderStack;
  return entry;
}

[[noreturn]] void enter(const Entry& e) {
  const uint64_t all = ~uint64_t{0};
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, nullptr, sizeof all);
  unregister_rseq();
  asm volatile(
      "mov %[stack], %%rsp\n\t"
      "xor %%ebp, %%ebp\n\t"
      "call *%[code]\n\t"
      "ud2"
      :
      : [stack] "r"(e.stack_top), [code] "r"(e.base), "D"(e.header), "S"(e.list)
      : "memory");
  __builtin_unreachable();
}

}  // namespace

void finish_shell(const ShellContext& context, const TaskNode& node, const ImageSet& images,
                  const std::map<uint32_t, int>& opened, Staging& staging, const TaskImage& staged_task, int control) {
  const TaskImage task = read_task(images, node);
  check_same_layout(task, staged_task);
  const std::vector<StagedRange> staged = staging.release();
  set_oom_score(task);
  set_coredump_filter(task);
  set_login_uid(task);

  check(::close_range(0, static_cast<unsigned>(context.room.floor) - 1, 0), "close", "our own descriptors");
  check(::close_range(static_cast<unsigned>(context.room.end), ~0u, 0), "close", "our own descriptors");
  install_descriptors(images, task.ids.files_id(), context.coordinator_pidfd, opened, task.core().thread_core().creds(),
                      *null_logger());

  std::vector<AddressRange> busy = own_mappings();
  for (const ImageVma& v : task.vmas) busy.push_back({v.start, v.end});
  AddressPicker picker(std::move(busy));
  const std::vector<AddressRange>& kernel = own_kernel_mappings();
  const uint64_t parking = kernel.empty() ? 0 : picker.pick(kernel.back().end - kernel.front().start);
  Rooms rooms{.parking = parking, .segments = segment_sizes(images, task)};
  uint64_t largest = 0;
  for (const auto& [id, bytes] : rooms.segments) largest = std::max(largest, bytes);
  if (largest != 0) rooms.attaching = picker.pick(largest);
  const uint64_t room = restorer_room(task.vmas.size(), staged.size(), task.tids.size());
  const uint64_t base = picker.pick(room);
  Region region(base);
  // Its size is known only when it is built, so the list that spares it is made for all of the room.
  const Entry entry =
      build_region(context, images, task, staged, region, {base, base + page_ceil(room)}, rooms, control);
  if (region.bytes().size() > room) throw Error("build", "the restorer's lists", E2BIG);
  const void* at = ::mmap(local(base), page_ceil(region.bytes().size()), PROT_READ | PROT_WRITE | PROT_EXEC,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == MAP_FAILED) throw Error("map", "the restorer", errno);
  std::memcpy(local(base), region.bytes().data(), region.bytes().size());
  enter(entry);
}

}  // namespace migrate
