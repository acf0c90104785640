#include "core/freeze/memory_room.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/cgroup_mounts.h"

namespace migrate {
namespace {

/// In the first line, or in that which begins with the word `key`. Nothing: there is none ("max").
std::optional<uint64_t> number(std::string_view text, std::string_view key = {}) {
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    if (!line.starts_with(key)) continue;
    line.remove_prefix(key.size());
    if (!key.empty() && !line.starts_with(' ')) continue;
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    line = line.substr(0, line.find(' '));
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    return error == std::errc() && end == line.data() + line.size() ? std::optional(value) : std::nullopt;
  }
  return std::nullopt;
}

/// Nothing: the cgroup has no such file.
std::optional<std::string> text_of(const std::string& folder, const char* file) {
  try {
    return read_file_at(AT_FDCWD, folder + "/" + file);
  } catch (const Error&) {
    return std::nullopt;
  }
}

struct HostMemory {
  uint64_t available, swap, total;
};

HostMemory host_memory() {
  const std::string text = read_file_at(AT_FDCWD, "/proc/meminfo");
  return {number(text, "MemAvailable:").value_or(0) * 1024, number(text, "SwapFree:").value_or(0) * 1024,
          number(text, "MemTotal:").value_or(0) * 1024};
}

/// Nothing: he has none any more.
std::string cgroups_of(pid_t pid) { return text_of("/proc/" + std::to_string(pid), "cgroup").value_or(""); }

/// What one cgroup's own limit leaves. Nothing: it has none, or leaves more than `most`.
std::optional<uint64_t> room_in(const std::string& folder, uint64_t most, uint64_t total) {
  // Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst (whose total_ counts all below, too).
  const bool v2 = ::access((folder + "/memory.max").c_str(), F_OK) == 0;
  if (!v2 && ::access((folder + "/memory.limit_in_bytes").c_str(), F_OK) != 0) return std::nullopt;
  const auto text = text_of(folder, v2 ? "memory.max" : "memory.limit_in_bytes");
  const auto limit = number(text.value_or(""));
  if (!limit || *limit > most + total) return std::nullopt;  // v1 has a number for none
  const auto usage = text_of(folder, v2 ? "memory.current" : "memory.usage_in_bytes");
  if (!usage) return std::nullopt;
  uint64_t room = *limit - std::min(*limit, number(*usage).value_or(0));
  if (room > most) return std::nullopt;
  const auto stat = text_of(folder, "memory.stat");  // makes the kernel add up all processors' counts
  if (!stat) return std::nullopt;
  for (const char* files :
       v2 ? std::array{"active_file", "inactive_file"} : std::array{"total_active_file", "total_inactive_file"})
    room += number(*stat, files).value_or(0);
  return room;
}

}  // namespace

uint64_t memory_available() { return host_memory().available; }

MemoryRoom memory_room(const std::vector<std::string>& folders) {
  const HostMemory host = host_memory();
  MemoryRoom room{.bytes = host.available, .where = {}};
  for (std::string folder : folders) {
    // Above the hierarchy's own folder no file has these names.
    for (; folder.size() > 1 && ::access((folder + "/cgroup.procs").c_str(), F_OK) == 0;
         folder.erase(folder.rfind('/'))) {
      const std::optional<uint64_t> here = room_in(folder, room.bytes, host.total);
      if (here && *here < room.bytes && *here + host.swap < room.bytes)
        room = {.bytes = *here + host.swap, .where = folder};
    }
  }
  return room;
}

MemoryRoom memory_room_at(pid_t pid) { return MemoryPlace(pid).room(); }

MemoryPlace::MemoryPlace(pid_t pid) : pid_(pid), cgroups_(cgroups_of(pid)) { look_up(); }

void MemoryPlace::look_up() {
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  folders_.clear();
  for (const bool v2 : {true, false}) {
    try {
      if (const auto mount = find_cgroup_mount(mounts, v2, "memory"))
        folders_.push_back(cgroup_folder(*mount, pid_, v2, "memory"));
    } catch (const Error&) {  // it cannot be seen from here
    }
  }
}

MemoryRoom MemoryPlace::room() {
  if (std::string now = cgroups_of(pid_); now != cgroups_) {
    cgroups_ = std::move(now);
    look_up();
  }
  return memory_room(folders_);
}

}  // namespace migrate
