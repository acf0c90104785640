#include "core/freeze/named_cgroup.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/cgroup_mounts.h"

namespace migrate {
namespace {

/// "" for the outermost cgroup; else "/a/b". Refusal of what could be something else than it looks like.
std::string normal(const std::string& path) {
  std::string all;
  bool good = path.starts_with('/');
  for (size_t at = 1; at < path.size() && good;) {
    const size_t slash = std::min(path.find('/', at), path.size());
    const std::string part = path.substr(at, slash - at);
    good = part != "." && part != "..";
    if (!part.empty()) all += "/" + part;
    at = slash + 1;
  }
  if (!good)
    throw Refusal("\"" + path + "\" is not the path of a cgroup",
                  "name it as /proc/PID/cgroup does, such as /programs");
  return all;
}

[[noreturn]] void refuse_owner(const std::string& what, uid_t owner) {
  throw Refusal(what + " may be changed by user " + std::to_string(owner) +
                    " or others, who could stop and kill what is received there",
                "name a cgroup that is root's with all above it, or take programs of that user only (--allow-uid)");
}

/// Whoever may write to it could move what is in it to cgroups of his own.
void check_owner(const std::string& file, const std::vector<uid_t>& users) {
  struct stat st {};
  check(::stat(file.c_str(), &st), "look at", file);
  const bool his =
      st.st_uid == 0 || (!users.empty() && std::ranges::all_of(users, [&](uid_t user) { return user == st.st_uid; }));
  if (!his || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) refuse_owner(file, st.st_uid);
}

/// From the mounted folder down.
void check_owners(const std::string& point, const std::string& inside, const std::vector<uid_t>& users) {
  for (size_t end = 0;; end = inside.find('/', end + 1)) {
    const std::string folder = point + inside.substr(0, end);
    check_owner(folder, users);
    check_owner(folder + "/cgroup.procs", users);
    if (end == std::string::npos) return;
  }
}

bool is_there(const std::string& folder) { return ::access((folder + "/cgroup.procs").c_str(), F_OK) == 0; }

/// Below such a cgroup (v2) there is none that could be a tree's gate.
bool is_threaded(const std::string& folder) {
  const std::string file = folder + "/cgroup.type";
  if (::access(file.c_str(), F_OK) != 0) return false;  // v1, or the outermost one
  const std::string type = read_file_at(AT_FDCWD, file);
  return type.find("threaded") != std::string::npos || type.find("invalid") != std::string::npos;
}

[[noreturn]] void refuse_useless(const std::string& folder, int why) {
  // v2 has processes at the leaves only.
  const std::string reason = why == EBUSY ? "it has controllers for those below it" : std::strerror(why);
  throw Refusal("no process can be put into cgroup " + folder + ": " + reason, "name one that takes processes");
}

/// 0, or why a process of ours cannot be there.
int why_not(int procs) {
  const pid_t child = check(::fork(), "start", "a process for a cgroup");
  if (child == 0) ::_exit(::write(procs, "0", 1) == 1 ? 0 : errno);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

/// The one by which services are stopped; else any. Something is mounted.
std::string best_hierarchy(const std::string& mountinfo) {
  std::optional<CgroupMount> mount = find_cgroup_mount(mountinfo, true);
  if (!mount) mount = find_cgroup_mount(mountinfo, false, "name=systemd");
  return mount ? mount->point : all_cgroup_mounts(mountinfo).front().point;
}

}  // namespace

NamedCgroup find_named_cgroup(const std::string& path, const std::vector<uid_t>& users) {
  const std::string inside = normal(path);
  NamedCgroup found;
  const std::string mountinfo = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  for (const CgroupMount& mount : all_cgroup_mounts(mountinfo)) {
    if (!is_there(mount.point + inside)) {
      found.without.push_back(mount.point);
      continue;
    }
    check_owners(mount.point, inside, users);
    found.folders.push_back(mount.point + inside);
  }
  if (found.folders.empty())
    throw Refusal("no cgroup hierarchy has " + path, found.without.empty()
                                                         ? "mount cgroup2 or cgroup v1"
                                                         : "make it (mkdir -p " + best_hierarchy(mountinfo) + inside +
                                                               "), and name it as " + "/proc/PID/cgroup does");
  return found;
}

void try_named_cgroup(const NamedCgroup& cgroup) {
  for (const std::string& folder : cgroup.folders) {
    if (is_threaded(folder)) throw Refusal("cgroup " + folder + " is threaded", "name one that is not");
    const Fd procs(::open((folder + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
    const int why = procs ? why_not(procs.get()) : errno;
    if (why != 0) refuse_useless(folder, why);
  }
}

}  // namespace migrate
