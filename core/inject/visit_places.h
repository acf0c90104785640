// Where a visit finds room in a task: for the slots (unused bytes of an executable page) and for the area M.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/procfs.h"
#include "core/base/types.h"

namespace migrate {

/// A line of /proc/PID/maps, as far as needed here.
struct MapsLine {
  RemoteRange range;
  std::string permissions;  ///< "r-xp"
  std::string name;
};

/// Throws Corrupt.
std::vector<MapsLine> parse_maps(std::string_view text);

/// Marks a slot place, so that one left by a visitor who died is recognised (and used again).
inline constexpr std::string_view kSlotMagic{"\0migrate visit\0", 15};
inline constexpr size_t kSlotHeaderBytes = 16;

/// Zero bytes at the end of the [vdso], else of another private read-only executable mapping; at least `bytes` long,
/// 16-byte aligned. nullopt: there are none.
std::optional<RemoteRange> find_slot_place(int mem_fd, const std::vector<MapsLine>& maps, size_t bytes);

/// The start of a free range of `bytes` that touches no other mapping: the middle of the largest gap.
std::optional<RemoteAddr> find_free_area(const std::vector<MapsLine>& maps, size_t bytes);

struct VisitPlaces {
  RemoteRange slots;  ///< both, with their header
  RemoteRange area;   ///< M
};
/// Both, for M of `bytes`. Throws Refusal if the task has no room.
VisitPlaces find_visit_places(pid_t pid, int mem_fd, const std::vector<MapsLine>& maps, size_t bytes);

/// What a visit adds to a task.
struct VisitNeeds {
  uint64_t bytes = 0;     ///< of address space, for M at its largest
  uint64_t mappings = 0;  ///< in all, with those that the task has
};
/// Looks for room in the running task, for so many POSIX timers. Throws Refusal if there is none.
VisitNeeds check_room_for_visit(const ProcDir& task, size_t timers);

/// Of M, with its parasite, for so many timers and mappings.
uint64_t visit_area_bytes(size_t timers, size_t mappings);

}  // namespace migrate
