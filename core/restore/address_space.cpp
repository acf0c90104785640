#include "core/restore/address_space.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"
#include "core/image/magic.h"
#include "core/inject/visit_places.h"
#include "images/pagemap.pb.h"

namespace migrate {
namespace {

constexpr uint64_t kLowest = 1 << 30;  // leave the low addresses (mmap_min_addr, 32-bit mappings) to the task
constexpr uint64_t kGap = kHugePageSize;
constexpr uint64_t kVast = uint64_t{1} << 40;    // a reservation: not staged unless it is known to have pages
constexpr uint32_t kInParent = 1, kPresent = 4;  // pagemap_entry.flags

void check_kind(const ImageVma& v, pid_t pid) {
  const char* what = v.has(kVmaSocket)              ? "a packet socket's ring"
                     : v.has(kVmaAioRing)           ? "a ring of asynchronous I/O"
                     : v.has(kVmaShadowStack)       ? "a shadow stack"
                     : (v.flags & MAP_HUGETLB) != 0 ? "huge pages of hugetlbfs"
                                                    : nullptr;
  if (what != nullptr) {
    throw Refusal("task " + std::to_string(pid) + " has " + v.describe() + ", " + what, "this cannot be restored yet");
  }
}

ImageVma checked(const img::vma_entry& e, const std::string& image) {
  ImageVma v;
  v.start = e.start();
  v.end = e.end();
  v.pgoff = e.pgoff();
  v.object = e.shmid();
  v.prot = e.prot();
  v.flags = e.flags();
  v.status = e.status();
  if (v.has(kVmaSysvIpc)) v.status &= ~uint32_t{kVmaAnonShared};  // CRIU sets both
  v.madvise = e.madv();
  const bool writes = (v.flags & MAP_TYPE) == MAP_SHARED && (v.prot & PROT_WRITE) != 0;
  v.open_flags = writes || (e.fdflags() & O_ACCMODE) == O_RDWR ? O_RDWR : O_RDONLY;
  if ((v.flags & MAP_TYPE) == MAP_PRIVATE) v.open_flags = O_RDONLY;
  if (v.start >= v.end || v.start % kPageSize != 0 || v.end % kPageSize != 0 || v.end > kUserEnd)
    throw Corrupt(image, "a mapping's range is not possible");
  if (v.pgoff % kPageSize != 0 || v.pgoff > uint64_t{1} << 62)
    throw Corrupt(image, "a mapping's offset is not possible");
  if ((v.prot & ~uint32_t{PROT_READ | PROT_WRITE | PROT_EXEC}) != 0) throw Corrupt(image, "unknown protection bits");
  return v;
}

}  // namespace

bool ImageVma::is_private() const { return !kernel_made() && (flags & MAP_TYPE) == MAP_PRIVATE; }

std::string ImageVma::describe() const {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "mapping %llx-%llx", static_cast<unsigned long long>(start),
                static_cast<unsigned long long>(end));
  return text.data();
}

std::vector<ImageVma> read_vmas(const img::mm_entry& mm, pid_t pid, std::vector<ImageVma>* guards) {
  const std::string image = image_name("mm", static_cast<uint64_t>(pid));
  std::vector<ImageVma> vmas;
  uint64_t guarded = 0;
  for (const img::vma_entry& e : mm.vmas()) {
    if ((e.status() & kVmaVsyscall) != 0) continue;
    ImageVma v = checked(e, image);
    if (v.has(kVmaGuard)) {
      if (v.start < guarded) throw Corrupt(image, "guards overlap or are out of order");
      guarded = v.end;
      if (guards != nullptr) guards->push_back(v);
      continue;
    }
    check_kind(v, pid);
    const uint32_t type = v.flags & MAP_TYPE;
    if (!v.kernel_made() && type != MAP_PRIVATE && type != MAP_SHARED && type != MAP_DROPPABLE)
      throw Corrupt(image, v.describe() + " is neither private nor shared");
    if (type == MAP_DROPPABLE && (v.has_file() || v.has(kVmaAnonShared | kVmaSysvIpc)))
      throw Corrupt(image, v.describe() + " is droppable and somebody else's");
    if (v.has(kVmaSysvIpc) && (v.has_file() || type != MAP_SHARED || v.object > INT32_MAX))
      throw Corrupt(image, v.describe() + " cannot be System V shared memory");
    if (v.has(kVmaAnonShared) && !v.has_file() && v.pgoff > kUserEnd - v.bytes())
      throw Corrupt(image, v.describe() + " lies beyond the end of its shared object");
    if (!vmas.empty() && vmas.back().end > v.start) throw Corrupt(image, "mappings overlap or are out of order");
    vmas.push_back(v);
  }
  return vmas;
}

std::vector<AddressRange> own_mappings() {
  std::vector<AddressRange> ranges;
  for (const MapsLine& line : parse_maps(read_file_at(AT_FDCWD, "/proc/self/maps")))
    if (line.range.end.get() <= kUserEnd) ranges.push_back({line.range.start.get(), line.range.end.get()});
  return ranges;
}

AddressPicker::AddressPicker(std::vector<AddressRange> busy) : busy_(std::move(busy)), cursor_(kLowest) {
  std::sort(busy_.begin(), busy_.end());
}

uint64_t AddressPicker::pick(uint64_t bytes, uint64_t like) {
  const uint64_t rest = like % kHugePageSize;
  for (;;) {
    while (next_ < busy_.size() && busy_[next_].end <= cursor_) ++next_;
    uint64_t at = cursor_ - cursor_ % kHugePageSize + rest;
    if (at < cursor_) at += kHugePageSize;
    const uint64_t limit = next_ < busy_.size() ? busy_[next_].start : kUserEnd;
    if (at + bytes + kGap <= limit && at + bytes >= at) {
      cursor_ = at + bytes + kGap;
      return at;
    }
    if (next_ >= busy_.size())
      throw Error("the address space has no room to stage " + std::to_string(bytes) + " bytes");
    cursor_ = std::max(cursor_, busy_[next_].end + kGap);
    ++next_;
  }
}

std::optional<std::vector<AddressRange>> pagemap_runs(const ImageSet& images, const std::string& name) {
  auto reader = images.read(name, magic::kPagemap);
  if (!reader) return std::nullopt;
  img::pagemap_head head;
  if (!reader->next(head)) throw Corrupt(name, "it is empty");
  std::vector<AddressRange> runs;
  for (img::pagemap_entry e; reader->next(e); e.Clear()) {
    const uint64_t pages = e.has_nr_pages() ? e.nr_pages() : e.compat_nr_pages();
    const uint32_t flags = e.has_flags() ? e.flags() : (e.in_parent() ? kInParent : kPresent);
    if (e.vaddr() % kPageSize != 0 || pages == 0 || pages > (uint64_t{1} << 48) / kPageSize || e.vaddr() > kUserEnd)
      throw Corrupt(name, "a run of pages is out of range");
    const AddressRange run{e.vaddr(), e.vaddr() + pages * kPageSize};
    if (!runs.empty() && runs.back().end > run.start) throw Corrupt(name, "runs of pages overlap or are out of order");
    if ((flags & (kInParent | kPresent)) != 0) runs.push_back(run);
  }
  return runs;
}

std::vector<size_t> mappings_to_stage(const std::vector<ImageVma>& vmas,
                                      const std::optional<std::vector<AddressRange>>& runs) {
  std::vector<size_t> staged;
  size_t run = 0;
  for (size_t i = 0; i < vmas.size(); ++i) {
    const ImageVma& v = vmas[i];
    if (!v.is_private()) continue;
    if (runs) {
      while (run < runs->size() && (*runs)[run].end <= v.start) ++run;
      if (run == runs->size() || (*runs)[run].start >= v.end) continue;
    } else if (v.prot == PROT_NONE && v.bytes() > kVast) {
      continue;
    }
    staged.push_back(i);
  }
  return staged;
}

}  // namespace migrate
