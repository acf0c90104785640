// Private memory, anonymous or of files, of a task that is being made, while its final place in the address space is
// not ours yet: it stands at one constant distance from its final addresses, so that it grows, shrinks, splits and
// merges as the mappings of the running source do without ever being moved.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <span>
#include <vector>

#include "core/base/fd.h"
#include "core/restore/address_space.h"

namespace migrate {

struct FileKey {
  dev_t device = 0;
  uint64_t inode = 0;  ///< 0: no file
  auto operator<=>(const FileKey&) const = default;
};

/// Addresses are final ones.
struct StagedArea {
  uint64_t start = 0, end = 0;
  bool no_reserve = false, grows_down = false;  ///< MAP_NORESERVE, MAP_GROWSDOWN: fixed when a mapping is made
  bool no_access = false;   ///< mapped PROT_NONE: readable and writable would commit more than the machine allows
  bool registered = false;  ///< with the userfaultfd: new since the last change, so that most pages are missing
  FileKey file{};
  uint64_t base = 0;  ///< offset in the file, less `start` (modulo 2^64)
  bool operator==(const StagedArea&) const = default;
};
/// A descriptor for each file, to map it.
using StagedFiles = std::map<FileKey, int>;

/// What stays, what goes and what is new when `wanted` takes the place of `have` (both ascending and disjoint). Kept
/// parts have the attributes of `have`. `replaced`: memory of the same address but another kind goes.
struct AreaChange {
  std::vector<StagedArea> kept, dropped, added;
  bool replaced = false;
};
AreaChange compare_areas(const std::vector<StagedArea>& have, const std::vector<StagedArea>& wanted);

/// Where the final address `address` is staged: modulo 2^47, so that every distance is good for a whole address space.
constexpr uint64_t staged_address(uint64_t address, uint64_t distance) {
  return (address + distance) & (kUserSpace - 1);
}
/// A distance (a multiple of 1 GiB, so that even upper page tables are moved whole) at which all of `staged` lies
/// outside of `busy` (ascending) and of the final address space `staged` and `others`. Throws Error if there is none.
uint64_t pick_distance(std::span<const AddressRange> staged, std::span<const AddressRange> others,
                       std::span<const AddressRange> busy);
/// Is `distance` such a one, but for `busy`?
bool distance_fits(uint64_t distance, std::span<const AddressRange> staged, std::span<const AddressRange> others);

/// The mappings themselves, in this process.
class StagedAreas {
 public:
  explicit StagedAreas(pid_t task) : task_(task) {}

  /// Maps what is new, unmaps what is gone, keeps the contents of the rest. `files` has those of `wanted`, `others` are
  /// final ranges that must stay free. Returns true if memory that may have had contents was mapped anew: then all of
  /// it is empty. `last`: no shell will be forked from this one any more.
  bool follow(const std::vector<StagedArea>& wanted, const StagedFiles& files, std::span<const AddressRange> others,
              bool last);
  /// Gives back all pages.
  void empty();
  /// Gives back pages (copies of file pages revert); parts that are not staged are passed over.
  void discard(AddressRange range);
  /// Makes pages of zeros, so that filling need not take memory; parts that are not staged, or reservations beyond what
  /// the machine commits, are passed over. `huge_pages`: as such, if there are any. Ends the registration of the areas
  /// that `range` touches. Throws Error (ENOMEM).
  void populate(AddressRange range, bool huge_pages);
  /// Makes one mapping of `range`, which is one in the images: parts that came at different times have anon_vmas of
  /// their own, which the kernel does not merge, and mremap(2) over two mappings fails. Copies its pages, if there are
  /// several parts, and tells whether there were. `own`: own_mappings() after unregister().
  bool weld(AddressRange range, const std::vector<AddressRange>& own);
  /// Ends the registration; before the memory is read into, or moved to its final place.
  void unregister();

  const std::vector<StagedArea>& areas() const { return areas_; }
  bool contains(AddressRange range) const;  ///< any part of it
  bool no_access(uint64_t address) const;
  uint64_t staging(uint64_t address) const { return staged_address(address, distance_.value()); }
  /// Made on first use.
  Fd& userfaultfd();

 private:
  void move_to(uint64_t distance);
  bool map(StagedArea& area, const StagedFiles& files, bool last);
  void set_registered(const StagedArea& area, bool on);

  pid_t task_;
  std::optional<uint64_t> distance_;
  std::vector<StagedArea> areas_;
  Fd userfaultfd_;
};

/// The parts of `range` that are single mappings: before Linux 6.17, mremap(2) moves no more than one at a time.
std::vector<AddressRange> split_by_mappings(AddressRange range, const std::vector<AddressRange>& mappings);

}  // namespace migrate
