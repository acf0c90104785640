// Where the hierarchies that can freeze (or hold back) tasks are mounted, and where a task is in them.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrate {

/// A mounted cgroup hierarchy.
struct CgroupMount {
  std::string point;  ///< the folder it is mounted on
  std::string root;   ///< the cgroup that is seen there ("/" for the whole hierarchy)
};

/// In the text of /proc/PID/mountinfo: the v2 hierarchy (`v2`), or the v1 one with `controller`.
std::optional<CgroupMount> find_cgroup_mount(std::string_view mountinfo, bool v2,
                                             std::string_view controller = "freezer");

/// All hierarchies in the text of /proc/PID/mountinfo, each where it is mounted first.
std::vector<CgroupMount> all_cgroup_mounts(std::string_view mountinfo);

/// In the text of /proc/PID/cgroup: the task's path in that hierarchy.
std::optional<std::string> find_cgroup_path(std::string_view cgroup_file, bool v2,
                                            std::string_view controller = "freezer");

/// The folder of a task in the mounted hierarchy; throws Error naming the task if it cannot be seen there.
std::string cgroup_folder(const CgroupMount& mount, pid_t pid, bool v2, std::string_view controller = "freezer");

}  // namespace migrate
