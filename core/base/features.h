// What this kernel can do, found out by doing it once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace migrate {

/// One thing that `check` looks at, and what to tell about it.
struct Feature {
  std::string name;  ///< as `check --feature NAME` takes it; CRIU's name where it has one
  bool required;     ///< without it nothing can be moved
  bool present;
  std::string use;      ///< what it is needed for
  std::string without;  ///< what follows where it is missing
  std::string remedy;   ///< what to do then
  std::string found;    ///< what exactly is there, if that can be told
};

/// The ways of telling which pages of a running task were written.
enum class DirtyTracking {
  none,
  soft_dirty,        ///< clear_refs and bit 55 of pagemap; memory that moves (mremap) counts as written
  write_protection,  ///< PAGEMAP_SCAN, and userfaultfd with kAsyncProtection
};
/// The best that this kernel has, tried out. Forks short-lived children where write_protection is missing.
DirtyTracking probe_dirty_tracking();

/// Features of the userfaultfd that tracking needs. Without WP_UNPOPULATED private anonymous memory cannot be scanned.
extern const uint64_t kAsyncProtection;

/// Whether missing pages can be made to raise SIGBUS (UFFDIO_POISON, Linux 6.6).
bool can_poison_pages();

/// What the kernel can do: probes everything, forks a few short-lived children. Takes milliseconds.
std::vector<Feature> probe_features();

/// The capabilities (by name) that moving processes needs and this process lacks. CAP_SYS_RESOURCE is never among them.
std::vector<std::string> missing_capabilities();
/// Throws Refusal if this process is not root's and lacks one of these. (Root with less does what it can.)
void demand_capabilities();

}  // namespace migrate
