// The mappings of tasks with their flags, as cheaply as this kernel allows.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/base/procfs.h"
#include "core/memory/vm_flag_bits.h"
#include "core/memory/vma.h"
#include "core/memory/vma_walk.h"

namespace migrate {

/// Reads maps and asks the kernel for the flags (VmaWalk), or, where that cannot be had, reads smaps. Safe for use by
/// several threads.
class MappingReader {
 public:
  /// Reads smaps.
  MappingReader() = default;
  /// Finds out what this kernel can do; takes 10 to 20 ms. Maps a few pages for a moment.
  static MappingReader best();
  /// `given`, or if that is null best().
  static std::shared_ptr<const MappingReader> shared(std::shared_ptr<const MappingReader> given = {});

  /// Whether read() mostly takes no longer for a task with more memory.
  bool is_quick() const { return walk_.has_value(); }
  /// The mappings, ascending, as parse_smaps() tells them. Of a running task they are those of about one moment; ones
  /// that change meanwhile may be told twice. Throws Error (the task is gone), Corrupt.
  std::vector<Vma> read(const ProcDir& task) const;
  /// The same, unless that would walk the page tables: this kernel cannot do without, or a mapping has flags whose
  /// meaning was not learnt, or the mappings of a running task change all the time.
  std::optional<std::vector<Vma>> read_quickly(const ProcDir& task) const;

 private:
  std::optional<VmaWalk> walk_;
  std::optional<VmFlagBits> bits_;
};

}  // namespace migrate
