#include "core/restore/staging.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "core/memory/page_files.h"
#include "core/restore/messages.h"

namespace migrate {
namespace {

struct TargetHeader {
  uint32_t kind;
  uint32_t first;  ///< piece that starts a target and carries the descriptors
  uint64_t id;
};

void* local(uint64_t address) { return reinterpret_cast<void*>(address); }  // NOLINT: an address of this process

void map_staging(const ShellContext& context, const ImageVma& v, const StagedRange& s) {
  int fd = -1;
  uint64_t flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (v.flags & (MAP_GROWSDOWN | MAP_NORESERVE));
  if (s.file) {
    fd = context.files.at({v.object, O_RDONLY});
  } else {
    flags |= MAP_ANONYMOUS;
  }
  const void* at = ::mmap(local(s.staging), s.bytes, s.no_access ? PROT_NONE : PROT_READ | PROT_WRITE, static_cast<int>(flags), fd,
                          s.file ? static_cast<off_t>(v.pgoff) : 0);
  if (at == MAP_FAILED) throw Error("stage", v.describe(), errno);
  constexpr uint64_t kHuge = 1u << MADV_HUGEPAGE, kNoHuge = 1u << MADV_NOHUGEPAGE;
  if ((v.madvise & kHuge) != 0) ::madvise(local(s.staging), s.bytes, MADV_HUGEPAGE);
  if ((v.madvise & kNoHuge) != 0) ::madvise(local(s.staging), s.bytes, MADV_NOHUGEPAGE);
}

}  // namespace

Staging::Staging(const ShellContext& context, const TaskImage& task) : pid_(task.pid) {
  std::vector<AddressRange> busy = own_mappings();
  for (const ImageVma& v : task.vmas) busy.push_back({v.start, v.end});
  AddressPicker picker(std::move(busy));
  const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(task.pid)};
  ranges_ = plan_staging(task.vmas, pagemap_runs(context.images, pagemap_name(memory)), picker);
  for (const StagedRange& s : ranges_) map_staging(context, task.vmas[s.vma], s);
  for (const ImageVma& v : task.vmas)
    if (v.kernel_made()) kernel_made_.push_back({v.start, v.end});
}

FillTarget Staging::make_target() {
  userfaultfd_ = Fd(static_cast<int>(check(::syscall(SYS_userfaultfd, O_CLOEXEC), "make", "a userfaultfd")));
  uffdio_api api{UFFD_API, 0, 0};
  check(::ioctl(userfaultfd_.get(), UFFDIO_API, &api), "set up", "a userfaultfd");
  FillTarget target;
  target.memory = {MemoryId::Kind::task, static_cast<uint64_t>(pid_)};
  for (const StagedRange& s : ranges_) {
    if (!s.file) {
      uffdio_register reg{{s.staging, s.bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
      check(::ioctl(userfaultfd_.get(), UFFDIO_REGISTER, &reg), "register staging memory of", std::to_string(pid_));
    }
    target.ranges.push_back({s.final_start, s.bytes, s.staging, !s.file});
  }
  for (const AddressRange& r : kernel_made_) target.ranges.push_back({r.start, r.end - r.start, 0, false});
  std::sort(target.ranges.begin(), target.ranges.end(),
            [](const FillTarget::Range& a, const FillTarget::Range& b) { return a.address < b.address; });
  target.userfaultfd = userfaultfd_.dup();
  target.mem = open_path("/proc/self/mem", O_RDWR);
  return target;
}

void Staging::unregister() {
  if (!userfaultfd_) return;
  for (const StagedRange& s : ranges_) {
    if (s.file) continue;
    uffdio_range range{s.staging, s.bytes};
    check(::ioctl(userfaultfd_.get(), UFFDIO_UNREGISTER, &range), "unregister staging memory of", std::to_string(pid_));
  }
  userfaultfd_.reset();
}

void Staging::fill_from(PageImages& pages) {
  size_t next = 0;
  const std::string name = pagemap_name({MemoryId::Kind::task, static_cast<uint64_t>(pid_)});
  for (StoredPages run : pages.locate(name)) {
    while (run.bytes != 0) {
      while (next < ranges_.size() && ranges_[next].final_start + ranges_[next].bytes <= run.address) ++next;
      if (next == ranges_.size()) return;
      const StagedRange& s = ranges_[next];
      // Pages of mappings that are not staged (the vdso's) are left out.
      if (run.address < s.final_start) {
        const uint64_t skip = std::min(run.bytes, s.final_start - run.address);
        run = {run.address + skip, run.bytes - skip, run.fd, run.offset + skip};
        continue;
      }
      const uint64_t n = std::min(run.bytes, s.final_start + s.bytes - run.address);
      std::byte* to = static_cast<std::byte*>(local(s.staging + (run.address - s.final_start)));
      if (pread_full(run.fd, {to, n}, run.offset, "a pages image") != n)
        throw Corrupt("the pages image of task " + std::to_string(pid_), "it is too short");
      run = {run.address + n, run.bytes - n, run.fd, run.offset + n};
    }
  }
}

void send_target(int socket, const FillTarget& target) {
  constexpr size_t kPiece = 2000;
  size_t at = 0;
  do {
    const size_t n = std::min(kPiece, target.ranges.size() - at);
    const TargetHeader header{static_cast<uint32_t>(target.memory.kind), at == 0, target.memory.id};
    std::vector<std::byte> body(sizeof header + n * sizeof(FillTarget::Range));
    std::memcpy(body.data(), &header, sizeof header);
    if (n != 0) std::memcpy(body.data() + sizeof header, target.ranges.data() + at, n * sizeof(FillTarget::Range));
    std::vector<int> fds;
    if (at == 0) {
      fds.push_back(target.mem.get());
      if (target.userfaultfd) fds.push_back(target.userfaultfd.get());
    }
    send_message(socket, Msg::target, 0, body, fds);
    at += n;
  } while (at < target.ranges.size());
}

void add_target_piece(std::vector<FillTarget>& targets, Message& piece) {
  TargetHeader header;
  if (piece.body.size() < sizeof header) throw Error("receive", "a fill target", EBADMSG);
  std::memcpy(&header, piece.body.data(), sizeof header);
  const MemoryId memory{static_cast<MemoryId::Kind>(header.kind), header.id};
  if (header.first != 0) {
    FillTarget fresh;
    fresh.memory = memory;
    if (piece.fds.empty()) throw Error("receive", "a fill target", EBADMSG);
    fresh.mem = std::move(piece.fds[0]);
    if (piece.fds.size() > 1) fresh.userfaultfd = std::move(piece.fds[1]);
    targets.push_back(std::move(fresh));
  }
  for (FillTarget& t : targets) {
    if (t.memory != memory) continue;
    const size_t n = (piece.body.size() - sizeof header) / sizeof(FillTarget::Range);
    const size_t at = t.ranges.size();
    t.ranges.resize(at + n);
    if (n != 0) std::memcpy(t.ranges.data() + at, piece.body.data() + sizeof header, n * sizeof(FillTarget::Range));
  }
}

}  // namespace migrate
