#include "core/freeze/cgroup_mounts.h"

#include <algorithm>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/fd.h"

namespace migrate {
namespace {

std::vector<std::string> split(std::string_view text, char by) {
  std::vector<std::string> parts;
  std::istringstream in{std::string(text)};
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

bool octal(char c) { return c >= '0' && c <= '7'; }

/// mountinfo writes blanks, newlines and backslashes as \ooo.
std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && octal(text[i + 1]) && octal(text[i + 2]) && octal(text[i + 3])) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool has_word(std::string_view list, std::string_view word) {
  const auto words = split(list, ',');
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// A line of mountinfo.
struct MountLine {
  CgroupMount mount;
  std::string device;
  bool v2 = false;
  std::string options;  ///< of the super block; of v1 they name the controllers
};

/// Those of cgroup file systems.
std::vector<MountLine> cgroup_lines(std::string_view mountinfo) {
  std::vector<MountLine> all;
  for (const std::string& line : split(mountinfo, '\n')) {
    const auto fields = split(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 6 || fields.end() - dash < 4 || (dash[1] != "cgroup2" && dash[1] != "cgroup")) continue;
    all.push_back({{unescape(fields[4]), unescape(fields[3])}, fields[2], dash[1] == "cgroup2", dash[3]});
  }
  return all;
}

}  // namespace

std::optional<CgroupMount> find_cgroup_mount(std::string_view mountinfo, bool v2, std::string_view controller) {
  for (MountLine& line : cgroup_lines(mountinfo))
    if (line.v2 == v2 && (v2 || has_word(line.options, controller))) return std::move(line.mount);
  return std::nullopt;
}

std::vector<CgroupMount> all_cgroup_mounts(std::string_view mountinfo) {
  std::vector<CgroupMount> all;
  std::set<std::string> devices;  // a hierarchy has one, however often it is mounted
  for (MountLine& line : cgroup_lines(mountinfo))
    if (devices.insert(std::move(line.device)).second) all.push_back(std::move(line.mount));
  return all;
}

std::optional<std::string> find_cgroup_path(std::string_view cgroup_file, bool v2, std::string_view controller) {
  for (const std::string& line : split(cgroup_file, '\n')) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() && line.starts_with("0:") : has_word(controllers, controller)) {
      return line.substr(second + 1);
    }
  }
  return std::nullopt;
}

std::string cgroup_folder(const CgroupMount& mount, pid_t pid, bool v2, std::string_view controller) {
  const std::string who = "task " + std::to_string(pid);
  const auto path =
      find_cgroup_path(read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid) + "/cgroup"), v2, controller);
  if (!path || !path->starts_with('/')) throw Error(who + " is in no cgroup of the hierarchy at " + mount.point);
  std::string inside = *path;
  if (mount.root != "/") {
    if (inside != mount.root && !inside.starts_with(mount.root + "/")) {
      throw Error(who + " is in cgroup " + inside + ", which is not below the one mounted at " + mount.point);
    }
    inside.erase(0, mount.root.size());
  }
  if (inside.starts_with("/..")) throw Error(who + " is in a cgroup outside of our cgroup namespace");
  return inside == "/" || inside.empty() ? mount.point : mount.point + inside;
}

}  // namespace migrate
