#include "core/memory/lazy_pages.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {
namespace {

// vma_entry.status
constexpr uint32_t kVsyscall = 1 << 2, kVdso = 1 << 3, kAnonShared = 1 << 8, kAnonPrivate = 1 << 9, kSysvIpc = 1 << 10,
                   kVvar = 1 << 12, kShadowStack = 1 << 15, kGuard = 1 << 16;

/// What the kernel follows of one list at most (kernel/futex/core.c).
constexpr int kRobustListLimit = 2048;
constexpr int kWaitvMost = 128;  // FUTEX_WAITV_MAX
/// What one thread is going to use next of its stack, above and below the pointer.
constexpr uint64_t kStackBelow = 2 * kPageSize, kStackAbove = 4 * kPageSize;
constexpr uint64_t kRseqSize = 32;
constexpr uint64_t kAltStackHead = 64;  ///< where a restore puts what is left of a time-out

class Collector {
 public:
  explicit Collector(int mem) : mem_(mem) {}

  /// The pages of these bytes; what lies outside of user space is nobody's.
  void add(uint64_t address, uint64_t bytes) {
    if (address == 0 || bytes == 0 || address >= kUserEnd) return;
    bytes = std::min(bytes, kUserEnd - address);
    ranges_.push_back({page_floor(address), page_ceil(address + bytes)});
  }

  template <class T>
  std::optional<T> read(uint64_t address) const {
    T value{};
    if (mem_ < 0 || address == 0 || address > kUserEnd - sizeof value) return std::nullopt;
    if (::pread(mem_, &value, sizeof value, static_cast<off_t>(address)) != static_cast<ssize_t>(sizeof value))
      return std::nullopt;
    return value;
  }

  PageSet take() {
    std::sort(ranges_.begin(), ranges_.end(),
              [](const PageSet::Range& a, const PageSet::Range& b) { return a.start < b.start; });
    PageSet pages;
    for (const PageSet::Range& r : ranges_) pages.append(r.start, r.end);
    return pages;
  }

 private:
  int mem_;
  std::vector<PageSet::Range> ranges_;
};

/// get_robust_list(2): the kernel walks it when the thread ends, and gives up silently where a page is missing.
void add_robust_list(uint64_t head, Collector& out) {
  out.add(head, sizeof(robust_list_head));
  const auto list = out.read<robust_list_head>(head);
  if (!list) return;
  const auto add_entry = [&](uint64_t entry) {
    const uint64_t at = entry & ~uint64_t{1};  // the lowest bit tells a PI futex
    out.add(at, sizeof(robust_list));
    out.add(at + static_cast<uint64_t>(list->futex_offset), sizeof(uint32_t));
    return at;
  };
  const auto address = [](const void* p) { return reinterpret_cast<uint64_t>(p); };
  if (list->list_op_pending != nullptr) add_entry(address(list->list_op_pending));
  uint64_t next = address(list->list.next);
  for (int i = 0; i < kRobustListLimit && next != 0 && (next & ~uint64_t{1}) != head; ++i) {
    const auto entry = out.read<robust_list>(add_entry(next));
    next = entry ? address(entry->next) : 0;
  }
}

/// The system call that the thread is in, or begins anew when it goes on: one that is restarted is no longer in it, and
/// has its number in the register that it comes from. Of a thread that is in none, whatever is there.
uint64_t call_of(const img::user_x86_regs_entry& regs) {
  return static_cast<int64_t>(regs.orig_ax()) >= 0 ? regs.orig_ax() : regs.ax();
}

/// Some operations answer EFAULT for a page that is missing, without a fault that is told (FUTEX_LOCK_PI, WAKE_OP).
void add_futexes(const img::user_x86_regs_entry& regs, Collector& out) {
  const uint64_t call = call_of(regs);
  if (call == SYS_futex) {
    out.add(regs.di(), sizeof(uint32_t));
    const uint64_t command = regs.si() & FUTEX_CMD_MASK;
    const bool two = command == FUTEX_REQUEUE || command == FUTEX_CMP_REQUEUE || command == FUTEX_WAKE_OP ||
                     command == FUTEX_WAIT_REQUEUE_PI || command == FUTEX_CMP_REQUEUE_PI;
    if (two) out.add(regs.r8(), sizeof(uint32_t));
  } else if (call == SYS_futex_waitv) {
    const uint64_t count = std::min<uint64_t>(regs.si(), kWaitvMost);
    out.add(regs.di(), count * sizeof(futex_waitv));
    for (uint64_t i = 0; i < count; ++i)
      if (const auto one = out.read<futex_waitv>(regs.di() + i * sizeof(futex_waitv)))
        out.add(one->uaddr, sizeof(uint32_t));
  }
}

/// A thread that runs may be about to call: it looked at the word, and still has the address in a register. Of one that
/// begins a call anew it is the argument.
void add_registers(const img::user_x86_regs_entry& regs, Collector& out) {
  constexpr uint16_t kSyscall = 0x050f;
  if (static_cast<int64_t>(regs.orig_ax()) >= 0 || out.read<uint16_t>(regs.ip()).value_or(kSyscall) == kSyscall) return;
  for (const uint64_t value : {regs.ax(), regs.bx(), regs.cx(), regs.dx(), regs.si(), regs.di(), regs.bp(), regs.r8(),
                               regs.r9(), regs.r10(), regs.r11(), regs.r12(), regs.r13(), regs.r14(), regs.r15()})
    out.add(value, 1);
}

void add_thread(const img::core_entry& core, Collector& out) {
  const img::thread_core_entry& thread = core.thread_core();
  const img::thread_info_x86& info = core.thread_info();
  const img::user_x86_regs_entry& regs = info.gpregs();
  out.add(info.clear_tid_addr(), sizeof(uint32_t));
  if (thread.futex_rla() != 0) add_robust_list(thread.futex_rla(), out);
  const img::rseq_entry& rseq = thread.rseq_entry();
  if (rseq.rseq_abi_pointer() != 0) {
    out.add(rseq.rseq_abi_pointer(), std::max<uint64_t>(rseq.rseq_abi_size(), kRseqSize));
    out.add(rseq.rseq_cs_pointer(), kRseqSize);  // struct rseq_cs
  }
  if ((thread.sas().ss_flags() & SS_DISABLE) == 0) out.add(thread.sas().ss_sp(), kAltStackHead);
  out.add(regs.fs_base(), sizeof(uint64_t));
  out.add(regs.ip(), 1);
  out.add(regs.sp() - std::min(regs.sp(), kStackBelow), kStackBelow + kStackAbove);
  add_futexes(regs, out);
  add_registers(regs, out);
}

}  // namespace

PageSet eager_pages(const img::mm_entry& mm, std::span<const img::core_entry> threads, int mem) {
  Collector out(mem);
  const auto add_between = [&](uint64_t start, uint64_t end) {
    if (start < end) out.add(start, end - start);
  };
  add_between(mm.mm_arg_start(), mm.mm_arg_end());
  add_between(mm.mm_env_start(), mm.mm_env_end());
  for (const img::core_entry& core : threads) add_thread(core, out);
  return out.take();
}

bool may_be_lazy(uint32_t status, uint32_t flags, uint64_t madvise) {
  constexpr uint32_t kOther = kVdso | kVvar | kVsyscall | kShadowStack | kGuard;
  return (status & kAnonPrivate) != 0 && (status & kOther) == 0 && (flags & (MAP_LOCKED | MAP_HUGETLB)) == 0 &&
         (madvise >> MADV_WIPEONFORK & 1) == 0;
}

PageSet lazy_pages(const img::mm_entry& mm, const PageSet& eager) {
  PageSet all;
  for (const img::vma_entry& vma : mm.vmas())
    if (may_be_lazy(vma.status(), vma.flags(), vma.madv())) all.append(vma.start(), vma.end());
  return all - eager;
}

void LazyShared::add_task(const img::mm_entry& mm, const PageSet& eager) {
  std::map<uint64_t, PageSet> own;
  for (const img::vma_entry& vma : mm.vmas()) {
    if ((vma.status() & kAnonShared) == 0 || (vma.status() & kSysvIpc) != 0) continue;
    Object& object = objects_[vma.shmid()];
    const PageSet here(vma.pgoff(), vma.pgoff() + (vma.end() - vma.start()));
    PageSet& before = own[vma.shmid()];
    // In another order than in the object: remap_file_pages(2), which tells nobody what it maps anew.
    const bool mixed = !before.empty() && vma.pgoff() < before.ranges().back().end;
    if ((vma.flags() & (MAP_LOCKED | MAP_HUGETLB)) != 0 || mixed) object.fit = false;
    before = before | here;
    object.mapped = object.mapped | here;
    const PageSet needed = eager & PageSet(vma.start(), vma.end());
    for (const PageSet::Range& r : needed.ranges())
      object.eager = object.eager | PageSet(r.start - vma.start() + vma.pgoff(), r.end - vma.start() + vma.pgoff());
  }
}

PagesByMemory LazyShared::take() const {
  // All together: who brings them maps them, and holds a page of each huge page's block.
  constexpr uint64_t kLeastPages = 256, kMostBytes = uint64_t{4} << 40;
  PagesByMemory all;
  uint64_t left = kMostBytes;
  for (const auto& [id, object] : objects_) {
    PageSet late = object.mapped - object.eager;
    if (!object.fit || late.pages() < kLeastPages || late.ranges().back().end > left) continue;
    left -= late.ranges().back().end;
    all.emplace(MemoryId{MemoryId::Kind::shmem, id}, std::move(late));
  }
  return all;
}

}  // namespace migrate
