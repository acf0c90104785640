// The final address space of a task as its images describe it, and where its pages are staged until it is built.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/types.h"
#include "core/image/image_set.h"
#include "images/mm.pb.h"

namespace migrate {

/// An address of this process.
inline void* local(uint64_t address) { return reinterpret_cast<void*>(address); }  // NOLINT

/// Bits of vma_entry.status (CRIU's).
enum VmaStatus : uint32_t {
  kVmaStack = 1 << 1,
  kVmaVsyscall = 1 << 2,
  kVmaVdso = 1 << 3,
  kVmaHeap = 1 << 5,
  kVmaFilePrivate = 1 << 6,
  kVmaFileShared = 1 << 7,
  kVmaAnonShared = 1 << 8,
  kVmaAnonPrivate = 1 << 9,
  kVmaSysvIpc = 1 << 10,
  kVmaSocket = 1 << 11,
  kVmaVvar = 1 << 12,
  kVmaAioRing = 1 << 13,
  kVmaMemfd = 1 << 14,
  kVmaShadowStack = 1 << 15,
  kVmaGuard = 1 << 16,
};

/// One mapping of the final address space; checked: page-aligned, not empty, below kUserEnd.
struct ImageVma {
  uint64_t start = 0, end = 0, pgoff = 0;
  uint64_t object = 0;  ///< file id, or the id of the anonymous shared object or System V segment
  uint32_t prot = 0, flags = 0, status = 0;
  uint64_t madvise = 0;  ///< bit n: MADV_n
  int open_flags = 0;    ///< O_RDONLY or O_RDWR: how its file is opened

  uint64_t bytes() const { return end - start; }
  bool has(uint32_t bits) const { return (status & bits) != 0; }
  bool kernel_made() const { return has(kVmaVdso | kVmaVvar); }
  bool has_file() const { return has(kVmaFilePrivate | kVmaFileShared | kVmaMemfd); }
  bool is_private() const;
  std::string describe() const;  ///< "mapping 7f00-7f10"
};

/// The mappings of a task, ascending and disjoint, without [vsyscall]; `guards` gets its guard ranges. Throws Corrupt;
/// Refusal for kinds that cannot be restored.
std::vector<ImageVma> read_vmas(const img::mm_entry& mm, pid_t pid, std::vector<ImageVma>* guards = nullptr);

struct AddressRange {
  uint64_t start = 0, end = 0;
  auto operator<=>(const AddressRange&) const = default;
};

/// This process's mappings.
std::vector<AddressRange> own_mappings();

/// Hands out address ranges that nothing else uses, from low to high.
class AddressPicker {
 public:
  explicit AddressPicker(std::vector<AddressRange> busy);
  /// A range of `bytes` whose start equals `like` modulo 2 MiB, with a gap before and after. Throws Error when there is
  /// no room.
  uint64_t pick(uint64_t bytes, uint64_t like = 0);

 private:
  std::vector<AddressRange> busy_;
  uint64_t cursor_;
  size_t next_ = 0;
};

/// Where the private pages of one mapping, or of a part of it, wait.
struct StagedRange {
  size_t vma = 0;  ///< index into the mappings
  uint64_t final_start = 0, bytes = 0, staging = 0;
  bool file = false;
  bool no_access = false;  ///< mapped PROT_NONE, which commits no memory; filled by UFFDIO_COPY or through mem only
};

/// The pages of a memory: [start, end) runs from its pagemap image, ascending; nullopt if there is none.
std::optional<std::vector<AddressRange>> pagemap_runs(const ImageSet& images, const std::string& name);

/// Indices of the private mappings that must be staged: those that `runs` touch (without runs: all, but for vast
/// reservations).
std::vector<size_t> mappings_to_stage(const std::vector<ImageVma>& vmas,
                                      const std::optional<std::vector<AddressRange>>& runs);

}  // namespace migrate
