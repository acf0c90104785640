#include "core/freeze/memory_room.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <sstream>
#include <string_view>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/cgroup_mounts.h"

namespace migrate {
namespace {

/// The number after `key`, or, without one, the text's first. Nothing: there is none ("max").
std::optional<uint64_t> number(const std::string& text, std::string_view key = {}) {
  std::istringstream words(text);
  std::string word;
  while (words >> word) {
    if (!key.empty() && word != key) continue;
    if (!key.empty() && !(words >> word)) return std::nullopt;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    return error == std::errc() && end == word.data() + word.size() ? std::optional(value) : std::nullopt;
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

uint64_t meminfo(std::string_view key) {
  return number(read_file_at(AT_FDCWD, "/proc/meminfo"), key).value_or(0) * 1024;
}

/// What one cgroup's own limit leaves. Nothing: it has none.
std::optional<uint64_t> room_in(const std::string& folder) {
  // Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst (whose total_ counts all below, too).
  const bool v2 = ::access((folder + "/memory.max").c_str(), F_OK) == 0;
  const auto limit = text_of(folder, v2 ? "memory.max" : "memory.limit_in_bytes");
  const auto usage = text_of(folder, v2 ? "memory.current" : "memory.usage_in_bytes");
  const auto stat = text_of(folder, "memory.stat");
  if (!limit || !usage || !stat || !number(*limit)) return std::nullopt;
  uint64_t room = *number(*limit) - std::min(*number(*limit), number(*usage).value_or(0));
  for (const char* files :
       v2 ? std::array{"active_file", "inactive_file"} : std::array{"total_active_file", "total_inactive_file"})
    room += number(*stat, files).value_or(0);
  return room;
}

}  // namespace

uint64_t memory_available() { return meminfo("MemAvailable:"); }

MemoryRoom memory_room(const std::vector<std::string>& folders) {
  MemoryRoom room{.bytes = memory_available(), .where = {}};
  const uint64_t swap = meminfo("SwapFree:");
  for (std::string folder : folders) {
    // Above the hierarchy's own folder no file has these names.
    for (; folder.size() > 1 && ::access((folder + "/cgroup.procs").c_str(), F_OK) == 0;
         folder.erase(folder.rfind('/'))) {
      const std::optional<uint64_t> here = room_in(folder);
      if (here && *here < room.bytes && *here + swap < room.bytes) room = {.bytes = *here + swap, .where = folder};
    }
  }
  return room;
}

MemoryRoom memory_room_at(pid_t pid) {
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  std::vector<std::string> folders;
  for (const bool v2 : {true, false}) {
    try {
      if (const auto mount = find_cgroup_mount(mounts, v2, "memory"))
        folders.push_back(cgroup_folder(*mount, pid, v2, "memory"));
    } catch (const Error&) {  // it cannot be seen from here
    }
  }
  return memory_room(folders);
}

}  // namespace migrate
