#include "core/inject/visit_places.h"

#include <elf.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <span>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/inject/slot_code.h"

namespace migrate {
namespace {

constexpr uint64_t kUserStart = 1 << 20;
/// Trailing zeros may belong to the image itself (fields of its last header).
constexpr uint64_t kMargin = 64;

uint64_t hex(std::string_view& text, char end) {
  uint64_t v = 0;
  const auto [p, ec] = std::from_chars(text.data(), text.data() + text.size(), v, 16);
  if (ec != std::errc() || p == text.data() + text.size() || *p != end) throw Corrupt("/proc/PID/maps", "bad address");
  text.remove_prefix(static_cast<size_t>(p - text.data()) + 1);
  return v;
}

/// Where an ELF image ends by its own section headers (they are last in a vdso); 0 if unknown.
uint64_t elf_end(std::span<const std::byte> image) {
  Elf64_Ehdr header;
  if (image.size() < sizeof header) return 0;
  std::memcpy(&header, image.data(), sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_shoff == 0) return 0;
  const uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
  return header.e_shoff <= image.size() && end <= image.size() ? end : 0;
}

std::optional<RemoteRange> place_in(int mem_fd, const MapsLine& map, size_t need) {
  // The tail only: a library's text may be large.
  const uint64_t bytes = std::min<uint64_t>(map.range.bytes(), map.name == "[vdso]" ? 64 << 10 : 2 * kPageSize);
  const RemoteAddr start = RemoteAddr(map.range.end.get() - bytes);
  std::vector<std::byte> tail(bytes);
  if (::pread(mem_fd, tail.data(), bytes, static_cast<off_t>(start.get())) != static_cast<ssize_t>(bytes)) {
    return std::nullopt;
  }
  const auto magic = as_bytes_of(kSlotMagic);
  const auto old = std::search(tail.begin(), tail.end(), magic.begin(), magic.end());
  uint64_t at = static_cast<uint64_t>(old - tail.begin());
  if (old == tail.end()) {
    while (at > 0 && tail[at - 1] == std::byte{0}) --at;
    const uint64_t image_end = start == map.range.start ? elf_end(tail) : 0;
    at = image_end != 0 ? std::max(at, image_end) : at + kMargin;
    at = (at + 15) & ~uint64_t{15};
  }
  if (at % 16 != 0 || at + need > bytes) return std::nullopt;
  return RemoteRange{start + at, map.range.end};
}

}  // namespace

std::vector<MapsLine> parse_maps(std::string_view text) {
  std::vector<MapsLine> maps;
  while (!text.empty()) {
    const size_t newline = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(std::min(newline + 1, text.size()));
    if (line.empty()) continue;
    MapsLine map;
    const uint64_t start = hex(line, '-');
    const uint64_t end = hex(line, ' ');
    if (start >= end || (start | end) % kPageSize != 0 || line.size() < 4) throw Corrupt("/proc/PID/maps", "bad line");
    map.range = {RemoteAddr(start), RemoteAddr(end)};
    map.permissions = line.substr(0, 4);
    // offset, device and inode follow; the name starts with '/' or '['.
    const size_t name = line.find_first_of("/[", 5);
    if (name != std::string_view::npos) map.name = line.substr(name);
    maps.push_back(std::move(map));
  }
  return maps;
}

std::optional<RemoteRange> find_slot_place(int mem_fd, const std::vector<MapsLine>& maps, size_t bytes) {
  for (const MapsLine& map : maps) {
    if (map.name != "[vdso]" || map.permissions != "r-xp") continue;
    if (const auto place = place_in(mem_fd, map, bytes)) return place;
  }
  for (const MapsLine& map : maps) {
    if (map.permissions != "r-xp" || map.name.empty() || map.name.front() != '/') continue;
    if (const auto place = place_in(mem_fd, map, bytes)) return place;
  }
  return std::nullopt;
}

std::optional<RemoteAddr> find_free_area(const std::vector<MapsLine>& maps, size_t bytes) {
  uint64_t best = 0, best_size = 0, last = kUserStart;
  const auto consider = [&](uint64_t start, uint64_t end) {
    if (end > start && end - start > best_size) {
      best = start;
      best_size = end - start;
    }
  };
  // Not always in order: a task that runs may merge mappings between two reads of the text.
  std::vector<RemoteRange> used;
  for (const MapsLine& map : maps)
    if (map.range.start.get() < kUserEnd) used.push_back(map.range);  // not [vsyscall]
  const auto lower = [](const RemoteRange& a, const RemoteRange& b) { return a.start < b.start; };
  if (!std::is_sorted(used.begin(), used.end(), lower)) std::sort(used.begin(), used.end(), lower);
  for (const RemoteRange& range : used) {
    consider(last, range.start.get());
    last = std::max(last, range.end.get());
  }
  consider(last, kUserEnd);
  // Room on both sides, so that neither a stack below a gap nor brk grows into it.
  if (best_size < 4 * bytes) return std::nullopt;
  return RemoteAddr(page_floor(best + best_size / 2 - bytes / 2));
}

VisitPlaces find_visit_places(pid_t pid, int mem_fd, const std::vector<MapsLine>& maps, size_t bytes) {
  constexpr size_t need = kSlotHeaderBytes + kLeaderSlotBytes + kThreadSlotBytes;
  const std::string who = "task " + std::to_string(pid);
  const auto place = find_slot_place(mem_fd, maps, need);
  if (!place)
    throw Refusal(who + " has no unused bytes in its [vdso] or its libraries",
                  "it cannot be visited; run it with a vdso");
  const auto area = find_free_area(maps, bytes);
  if (!area) throw Refusal(who + " has no free address range", "make it map less");
  return {{place->start, place->start + need}, {*area, *area + bytes}};
}

VisitNeeds check_room_for_visit(const ProcDir& task, size_t timers) {
  constexpr uint64_t kMappings = 2;
  const auto maps = parse_maps(task.read("maps"));
  const uint64_t bytes = visit_area_bytes(timers, maps.size());
  find_visit_places(task.pid(), task.open("mem", O_RDONLY).get(), maps, bytes);
  // The kernel does not count [vsyscall], which is no mapping of the task's.
  return {.bytes = bytes, .mappings = maps.size() - (!maps.empty() && maps.back().name == "[vsyscall]") + kMappings};
}

}  // namespace migrate
