// The mappings of a task, as /proc/PID/smaps tells them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/types.h"

namespace migrate {

/// VmFlags of smaps that matter here, as bits (proc(5), fs/proc/task_mmu.c).
enum class VmFlag : uint32_t {
  may_write = 1 << 0,        // mw
  shared = 1 << 1,           // sh
  grows_down = 1 << 2,       // gd
  pfn_map = 1 << 3,          // pf
  io = 1 << 4,               // io
  locked = 1 << 5,           // lo
  sequential = 1 << 6,       // sr
  random = 1 << 7,           // rr
  dont_fork = 1 << 8,        // dc
  no_reserve = 1 << 9,       // nr
  hugetlb = 1 << 10,         // ht
  wipe_on_fork = 1 << 11,    // wf
  dont_dump = 1 << 12,       // dd
  huge_page = 1 << 13,       // hg
  no_huge_page = 1 << 14,    // nh
  mergeable = 1 << 15,       // mg
  uffd_missing = 1 << 16,    // um
  uffd_wp = 1 << 17,         // uw
  uffd_minor = 1 << 18,      // ui
  shadow_stack = 1 << 19,    // ss
  sealed = 1 << 20,          // sl
  droppable = 1 << 21,       // dp
  memory_tagging = 1 << 22,  // mt
  lock_on_fault = 1 << 23,   // lf
};

/// One line of maps with its VmFlags.
struct Vma {
  RemoteRange range;
  int prot = 0;  ///< PROT_*
  bool shared = false;
  uint64_t offset = 0;  ///< in the file, bytes
  dev_t device = 0;
  uint64_t inode = 0;
  std::string name;    ///< path or "[heap]", newlines as "\012", possibly with " (deleted)" behind; empty: anonymous
  uint32_t flags = 0;  ///< VmFlag bits
  int protection_key = 0;

  bool has(VmFlag flag) const { return (flags & static_cast<uint32_t>(flag)) != 0; }
  /// Backed by an inode: a file, or shared anonymous memory, a memfd and the like.
  bool has_file() const { return inode != 0; }
  /// "START-END" in hexadecimal, the name of its link in /proc/PID/map_files.
  std::string link_name() const;
  /// "mapping 7f00-7f01 (name)" for messages.
  std::string describe() const;
};

/// Parses the text of /proc/PID/smaps (or of maps; then `flags` holds nothing but `shared`). Throws Corrupt.
std::vector<Vma> parse_smaps(std::string_view text);
/// The VmFlag of a two-letter code, as a bit; 0: none that matters here.
uint32_t vm_flag(std::string_view code);
/// Calls `see` with each mapping of a text of smaps and all codes of its VmFlags line.
void for_each_vm_flags(std::string_view smaps,
                       const std::function<void(const Vma& vma, std::set<std::string> codes)>& see);

}  // namespace migrate
